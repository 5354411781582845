from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from chainrule.core.task import Predictions
from chainrule.metrics import classification

pytestmark = pytest.mark.unit


def said(values: object, losses: np.ndarray | None = None) -> Predictions:
    array = np.asarray(values)
    return Predictions(array, np.ones(array.shape), losses)


rows_of_classes = st.integers(2, 6).flatmap(
    lambda classes: st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1)
)


@settings(max_examples=60, deadline=None)
@given(rows_of_classes)
def test_scores_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    targets, values = (np.array(column) for column in zip(*rows, strict=True))
    found = classification.measure(targets, said(values))
    macro = metrics.f1_score(targets, values, average="macro", zero_division=0)
    two = max(targets.max(), values.max()) <= 1
    f1 = metrics.f1_score(targets, values, average="binary", zero_division=0) if two else macro
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(targets, values))
    assert found["micro_f1"] == pytest.approx(found["accuracy"])
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["f1"] == pytest.approx(f1)
    if len(set(targets) | set(values)) > 1:  # scikit-learn warns otherwise
        assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(targets, values))


def test_weights_are_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    targets, values = generator.integers(0, 4, (2, 50))
    weights = generator.integers(0, 3, (5, 50))
    found = classification.weighted(targets, values, weights)
    for i in range(5):
        again = np.repeat(np.arange(50), weights[i])
        expected = classification.measure(targets[again], said(values[again]))
        assert {name: scores[i] for name, scores in found.items()} == pytest.approx(expected)


def test_constant_predictions_score_zero_without_a_warning() -> None:
    found = classification.measure(np.array([0, 1, 1]), said([0, 0, 0]))
    assert found["mcc"] == 0.0
    assert found["f1"] == 0.0
    assert classification.measure(np.array([0, 0]), said([0, 0]))["mcc"] == 0.0


def test_loss_is_the_mean_of_row_losses() -> None:
    losses = np.array([1.0, 3.0], dtype=np.float32)
    assert classification.measure(np.array([0, 1]), said([0, 1], losses))["loss"] == 2.0
    assert "loss" not in classification.measure(np.array([0, 1]), said([0, 1]))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        classification.measure(np.array([0, 1]), said([0]))
    with pytest.raises(ValueError, match="at least one row"):
        classification.measure(np.array([], dtype=np.int64), said(np.array([], dtype=np.int64)))


def test_several_labels_equal_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    targets = (generator.random((200, 6)) < 0.3).astype(np.float32)
    values = (generator.random((200, 6)) < 0.3).astype(np.uint8)
    found = classification.multilabel_measure(targets, said(values))
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(targets, values))
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(targets, values, average="micro"))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(targets, values, average="macro"))
    assert found["f1"] == pytest.approx(metrics.f1_score(targets, values, average="samples", zero_division=1.0))


def test_a_label_that_never_appears_does_not_lower_macro_f1() -> None:
    targets = np.array([[1, 0, 0], [0, 1, 0]])
    assert classification.multilabel_measure(targets, said(targets))["macro_f1"] == 1.0


def test_a_row_without_labels_that_gets_none_is_right() -> None:
    found = classification.multilabel_measure(np.zeros((3, 2)), said(np.zeros((3, 2))))
    assert found == {"exact_match": 1.0, "micro_f1": 0.0, "macro_f1": 0.0, "f1": 1.0}


def test_detail_counts_every_row() -> None:
    targets, values = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 2])
    detail = classification.detail(targets, said(values), ["a", "b", "c"])
    assert detail["confusion"]["matrix"] == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    assert detail["confusions"][0] == {"target": "a", "predicted": "b", "count": 2, "share": 2 / 3}
    row = detail["per_class"][1]
    assert row == {
        "label": "b",
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
        "support": 2,
        "predicted": 3,
    }
    json.dumps(detail, allow_nan=False)


def test_many_classes_give_pairs_instead_of_a_matrix() -> None:
    generator = np.random.default_rng(2)
    targets, values = generator.integers(0, 60, (2, 3000))
    detail = classification.detail(targets, said(values), [f"c{i}" for i in range(60)])
    assert detail["confusion"]["matrix"] is None
    counts = [pair["count"] for pair in detail["confusion"]["pairs"]]
    assert len(counts) == classification.TOP_PAIRS
    assert counts == sorted(counts, reverse=True)
    assert len(detail["confusions"]) == classification.TOP_CONFUSIONS


def test_detail_of_several_labels() -> None:
    targets, values = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[0, 1], [1, 0], [0, 0]])
    detail = classification.multilabel_detail(targets, said(values), ["a", "b"])
    assert detail["confusions"] == [{"target": "a", "predicted": "b", "count": 1, "share": 0.5}]
    assert detail["rows_without_prediction"] == 1
    assert [row["support"] for row in detail["per_class"]] == [2, 1]
    json.dumps(detail, allow_nan=False)
