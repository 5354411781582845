"""Scores of classes: one label per row, or several.

Every score is a function of weighted rows, so that one formula serves the point estimate (all weights 1) and the
bootstrap (weights are how often each row was drawn).

Definitions that others disagree about, and which never change here:
    macro_f1     the mean over those classes that appear in the targets or the predictions (scikit-learn's rule for one
                 label per row; used for several labels too, where scikit-learn also counts labels that never appear).
    f1           one label per row: with two classes the F1 of the second label in the run's label order (the positive
                 class: "1" of 0/1, "positive" of negative/positive, "yes" of no/yes); with more classes macro_f1.
                 "Two classes" means that no index above 1 is in the targets or the predictions.
                 Several labels: the mean over rows of the row's own F1; a row that has no label and gets none scores 1.
    exact_match  the share of rows whose whole set of labels is right.
A score that is 0/0 (a class never predicted, predictions that are all the same in mcc) is 0, without a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from chainrule.core.task import Predictions

MATRIX_CLASSES = 50  # above this a confusion matrix is unreadable, and its pairs are listed instead
TOP_CONFUSIONS = 20
TOP_PAIRS = 200


def measure(targets: np.ndarray, predictions: Predictions) -> dict[str, float]:
    """accuracy, macro_f1, micro_f1, f1, mcc, and loss where row losses are known.

    Args:
        targets: class indexes (n,), n ≥ 1.
        predictions: `values` are class indexes (n,).

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    _same_rows(targets, predictions)
    scores = weighted(targets, predictions.values, np.ones((1, len(targets))))
    return _with_loss({name: float(value[0]) for name, value in scores.items()}, predictions)


def weighted(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the rows.

    Args:
        targets, values: class indexes (n,).
        weights: (r, n), how often each row counts.

    Returns:
        name -> (r,). mcc is Gorodkin's multi-class R_K (2004).
    """
    targets, values = np.asarray(targets, dtype=np.int64), np.asarray(values, dtype=np.int64)
    classes = int(max(1, targets.max(), values.max())) + 1
    hits = _sum_by(weights * (targets == values), targets, classes)
    support = _sum_by(weights, targets, classes)
    predicted = _sum_by(weights, values, classes)
    rows = weights.sum(axis=1)
    accuracy = hits.sum(axis=1) / rows
    by_class = ratio(2 * hits, support + predicted)
    macro = _mean_of_present(by_class, support + predicted)
    return {
        "accuracy": accuracy,
        "macro_f1": macro,
        "micro_f1": accuracy.copy(),
        "f1": by_class[:, 1] if classes == 2 else macro.copy(),
        "mcc": _mcc(hits.sum(axis=1), predicted, support, rows),
    }


def multilabel_measure(targets: np.ndarray, predictions: Predictions) -> dict[str, float]:
    """exact_match, micro_f1, macro_f1, f1, and loss where row losses are known.

    Args:
        targets: 0/1 matrix (n, labels), n ≥ 1.
        predictions: `values` are a 0/1 matrix (n, labels).

    Raises:
        ValueError: no rows, or shapes that differ.
    """
    _same_rows(targets, predictions)
    scores = multilabel_weighted(targets, predictions.values, np.ones((1, len(targets))))
    return _with_loss({name: float(value[0]) for name, value in scores.items()}, predictions)


def multilabel_weighted(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `multilabel_measure` for each of r weightings of the rows.

    Args:
        targets, values: 0/1 matrices (n, labels).
        weights: (r, n), how often each row counts.

    Returns:
        name -> (r,).
    """
    truth, said = np.asarray(targets) > 0.5, np.asarray(values) > 0.5
    both = truth & said
    hits, support, predicted = (_product(weights, matrix) for matrix in (both, truth, said))
    sizes = truth.sum(axis=1) + said.sum(axis=1)
    by_row = np.where(sizes == 0, 1.0, ratio(2.0 * both.sum(axis=1), sizes))
    rows = weights.sum(axis=1)
    return {
        "exact_match": weights @ (truth == said).all(axis=1).astype(np.float64) / rows,
        "micro_f1": ratio(2 * hits.sum(axis=1), support.sum(axis=1) + predicted.sum(axis=1)),
        "macro_f1": _mean_of_present(ratio(2 * hits, support + predicted), support + predicted),
        "f1": weights @ by_row / rows,
    }


def detail(targets: np.ndarray, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """Per-class scores and confusions of one label per row, as plain JSON values.

    Returns:
        {"kind": "class", "rows": n, "labels": [...],
         "per_class": [{"label", "precision", "recall", "f1", "support", "predicted"}], in label order,
         "confusion": {"matrix": [[count]] (row = target, column = prediction), "pairs": None} for at most 50 classes,
             otherwise {"matrix": None, "pairs": [{"target", "predicted", "count"}]} (the 200 most frequent mistakes),
         "confusions": [{"target", "predicted", "count", "share"}] (the 20 most frequent mistakes; share of the
             target's rows)}.
    """
    _same_rows(targets, predictions)
    truth, said = np.asarray(targets, dtype=np.int64), np.asarray(predictions.values, dtype=np.int64)
    classes = len(labels)
    support, predicted = np.bincount(truth, minlength=classes), np.bincount(said, minlength=classes)
    hits = np.bincount(truth[truth == said], minlength=classes)
    mistakes = _mistakes(truth, said, labels, support)
    confusion: dict[str, Any] = {"matrix": None, "pairs": None}
    if classes <= MATRIX_CLASSES:
        matrix = np.bincount(truth * classes + said, minlength=classes * classes).reshape(classes, classes)
        confusion["matrix"] = matrix.tolist()
    else:
        confusion["pairs"] = [{key: pair[key] for key in ("target", "predicted", "count")} for pair in mistakes]
    return {
        "kind": "class",
        "rows": len(truth),
        "labels": list(labels),
        "per_class": _per_class(hits, predicted, support, labels),
        "confusion": confusion,
        "confusions": mistakes[:TOP_CONFUSIONS],
    }


def multilabel_detail(targets: np.ndarray, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """Per-label scores of several labels per row, as plain JSON values.

    Returns:
        {"kind": "classes", "rows": n, "labels": [...],
         "per_class": [{"label", "precision", "recall", "f1", "support", "predicted"}], in label order,
         "confusions": [{"target", "predicted", "count", "share"}] (rows that have `target` but were not given it, and
             were given `predicted` but do not have it; the 20 most frequent),
         "labels_per_row": {"targets": mean, "predicted": mean}, "rows_without_prediction": count}.
    """
    _same_rows(targets, predictions)
    truth, said = np.asarray(targets) > 0.5, np.asarray(predictions.values) > 0.5
    support = truth.sum(axis=0)
    missed, invented = (truth & ~said).astype(np.float32), (said & ~truth).astype(np.float32)
    mixed = (sparse.csr_array(missed.T) @ sparse.csr_array(invented)).tocoo()
    order = np.lexsort((mixed.col, mixed.row, -mixed.data))[:TOP_CONFUSIONS]
    pairs = [(int(mixed.row[i]), int(mixed.col[i]), int(mixed.data[i])) for i in order]
    return {
        "kind": "classes",
        "rows": len(truth),
        "labels": list(labels),
        "per_class": _per_class((truth & said).sum(axis=0), said.sum(axis=0), support, labels),
        "confusions": [_pair(target, value, count, labels, support) for target, value, count in pairs],
        "labels_per_row": {"targets": float(truth.sum() / len(truth)), "predicted": float(said.sum() / len(said))},
        "rows_without_prediction": int((~said.any(axis=1)).sum()),
    }


def _mistakes(truth: np.ndarray, said: np.ndarray, labels: Sequence[str], support: np.ndarray) -> list[dict[str, Any]]:
    wrong = truth != said
    codes, counts = np.unique(truth[wrong] * len(labels) + said[wrong], return_counts=True)
    order = np.lexsort((codes, -counts))[:TOP_PAIRS]
    return [_pair(*divmod(int(codes[i]), len(labels)), int(counts[i]), labels, support) for i in order]


def _pair(target: int, value: int, count: int, labels: Sequence[str], support: np.ndarray) -> dict[str, Any]:
    share = count / int(support[target])
    return {"target": labels[target], "predicted": labels[value], "count": count, "share": share}


def _per_class(
    hits: np.ndarray, predicted: np.ndarray, support: np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
    precision, recall = ratio(hits, predicted), ratio(hits, support)
    f1 = ratio(2 * hits, predicted + support)
    return [
        {
            "label": label,
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
            "predicted": int(predicted[i]),
        }
        for i, label in enumerate(labels)
    ]


def _same_rows(targets: np.ndarray, predictions: Predictions) -> None:
    if len(targets) == 0 or np.shape(targets) != np.shape(predictions.values):
        raise ValueError(
            f"targets and predictions must have the same shape and at least one row, got {np.shape(targets)} and "
            f"{np.shape(predictions.values)}"
        )


def _with_loss(scores: dict[str, float], predictions: Predictions) -> dict[str, float]:
    if predictions.losses is not None:
        scores["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return scores


def _sum_by(weights: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Sum (r, n) weights over rows of the same index: (r, size)."""
    rows = len(index)
    one_hot = sparse.csr_array((np.ones(rows), index, np.arange(rows + 1)), shape=(rows, size))
    return np.asarray(weights @ one_hot)


def _product(weights: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.asarray(weights @ sparse.csr_array(matrix.astype(np.float64)))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where `below` is 0."""
    found = np.zeros(np.shape(below), dtype=np.float64)
    np.divide(above, below, out=found, where=np.asarray(below) != 0)
    return found


def _mean_of_present(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return ratio(scores.sum(axis=1), (rows > 0).sum(axis=1))


def _mcc(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray, rows: np.ndarray) -> np.ndarray:
    covariance = hits * rows - (predicted * support).sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (support**2).sum(axis=1))
    return ratio(covariance, np.sqrt(spread))
