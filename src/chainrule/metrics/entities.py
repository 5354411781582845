"""Scores of marked pieces of text: a predicted entity is right where begin, end and type are those of a true one.

All scores are ratios of sums over rows, as seqeval and conlleval compute them; a score that is 0/0 is 0.

    f1         over all entities of all types (micro).
    macro_f1   the mean over those types that appear in the targets or the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.metrics.classification import ratio

TOP_CONFUSIONS = 20


def measure(targets: Spans, predictions: Predictions) -> dict[str, float]:
    """precision, recall, f1, macro_f1, and loss where row losses are known.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    if not len(targets) or len(targets) != len(predictions.values):
        raise ValueError(f"{len(targets)} targets and {len(predictions.values)} predictions")
    kinds = _kinds(targets, predictions.values)
    scores = weighted(None, tally(targets, predictions.values, kinds), np.ones((1, len(targets))))
    found = {name: float(value[0]) for name, value in scores.items()}
    if predictions.losses is not None:
        found["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return found


def tally(targets: Spans, values: Spans, kinds: int | None = None) -> np.ndarray:
    """What each row adds to the sums: (n, 3 · kinds) of entities found, predicted and true, type by type."""
    count = _kinds(targets, values) if kinds is None else kinds
    found = np.isin(_keys(values), _keys(targets))
    columns = [_counts(values, found, count), _counts(values, None, count), _counts(targets, None, count)]
    return np.concatenate(columns, axis=1)


def weighted(targets: Any, tallies: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the rows.

    Args:
        targets: not asked; `tallies` hold what they say.
        tallies: (n, 3 · kinds) of `tally`.
        weights: (r, n), how often each row counts.

    Returns:
        name -> (r,).
    """
    hits, predicted, support = np.split(np.asarray(weights @ tallies), 3, axis=1)
    by_kind = ratio(2 * hits, predicted + support)
    present = (predicted + support > 0).sum(axis=1)
    total, said, true = hits.sum(axis=1), predicted.sum(axis=1), support.sum(axis=1)
    return {
        "f1": ratio(2 * total, said + true),
        "precision": ratio(total, said),
        "recall": ratio(total, true),
        "macro_f1": ratio(by_kind.sum(axis=1), present),
    }


def detail(targets: Spans, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """Scores of each type, and what goes wrong, as plain JSON values.

    Returns:
        {"kind": "spans", "rows": n, "labels": [...],
         "per_class": [{"label", "precision", "recall", "f1", "support", "predicted"}], in label order,
         "confusions": [{"target", "predicted", "count", "share"}] (right ends, wrong type; share of the target's),
         "errors": {"type", "bounds", "invented", "missed"} (predicted entities with the ends of a true one of another
             type; those that overlap a true one otherwise; those that touch none; true ones that none touches)}.
    """
    values: Spans = predictions.values
    sums = tally(targets, values, len(labels)).sum(axis=0)
    hits, predicted, support = np.split(sums, 3)
    precision, recall, f1 = ratio(hits, predicted), ratio(hits, support), ratio(2 * hits, predicted + support)
    columns = {"precision": precision, "recall": recall, "f1": f1, "support": support, "predicted": predicted}
    per_class = [
        {"label": label} | {name: _number(name, column[i]) for name, column in columns.items()}
        for i, label in enumerate(labels)
    ]
    confused, errors = _errors(targets, values, len(labels))
    order = [divmod(int(code), len(labels)) for code in np.argsort(-confused, axis=None, kind="stable")]
    pairs = [(true, said, int(confused[true, said])) for true, said in order[:TOP_CONFUSIONS] if confused[true, said]]
    return {
        "kind": "spans",
        "rows": len(targets),
        "labels": list(labels),
        "per_class": per_class,
        "confusions": [
            {"target": labels[t], "predicted": labels[p], "count": count, "share": count / int(support[t])}
            for t, p, count in pairs
        ],
        "errors": errors,
    }


def _errors(targets: Spans, values: Spans, kinds: int) -> tuple[np.ndarray, dict[str, int]]:
    confused = np.zeros((kinds, kinds), dtype=np.int64)
    errors = dict.fromkeys(("type", "bounds", "invented", "missed"), 0)
    for true, said in zip(targets.each(), values.each(), strict=True):
        ends = {(start, end): kind for start, end, kind in true}
        for start, end, kind in said:
            other = ends.get((start, end))
            if other is not None and other != kind:
                confused[other, kind] += 1
                errors["type"] += 1
            elif other is None:
                touches = any(start < last and first < end for first, last, _ in true)
                errors["bounds" if touches else "invented"] += 1
        errors["missed"] += sum(
            not any(start < last and first < end for first, last, _ in said) for start, end, _ in true
        )
    return confused, errors


def _kinds(*spans: Spans) -> int:
    return 1 + max((int(each.bounds[:, 2].max(initial=0)) for each in spans), default=0)


def _keys(spans: Spans) -> np.ndarray:
    """(k,) one value for each span, equal where row, ends and kind are."""
    columns = np.ascontiguousarray(np.concatenate([spans.rows[:, None], spans.bounds], axis=1, dtype=np.int64))
    return columns.view([("", np.int64)] * 4).ravel()


def _counts(spans: Spans, counted: np.ndarray | None, kinds: int) -> np.ndarray:
    """(n, kinds) how many spans of each kind each row has, only those counted."""
    kept = slice(None) if counted is None else counted
    codes = (spans.rows * kinds + spans.bounds[:, 2])[kept]
    return np.bincount(codes, minlength=len(spans) * kinds).reshape(len(spans), kinds).astype(np.float64)


def _number(name: str, value: float) -> float | int:
    return int(value) if name in ("support", "predicted") else float(value)
