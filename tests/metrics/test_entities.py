"""Entity scores: seqeval's numbers, on any rows, and on weighted ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.data.entities import spans_of, tag_names
from chainrule.metrics import entities

pytestmark = pytest.mark.unit
LABELS = ("LOC", "ORG", "PER")
ROWS = st.lists(
    st.integers(1, 8).flatmap(
        lambda size: st.tuples(*[st.lists(st.integers(0, 2 * len(LABELS)), min_size=size, max_size=size)] * 2)
    ),
    min_size=1,
    max_size=6,
)


def spans(rows: list[list[int]]) -> Spans:
    return Spans.of([spans_of(tags, [(place, place + 1) for place in range(len(tags))]) for tags in rows])


def said(rows: list[list[int]]) -> Predictions:
    return Predictions(spans(rows), np.ones(len(rows)))


@given(ROWS)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_seqeval(rows: list[tuple[list[int], list[int]]]) -> None:
    true, predicted = [row[0] for row in rows], [row[1] for row in rows]
    names = tag_names(LABELS)
    both = [[[names[tag] for tag in row] for row in side] for side in (true, predicted)]
    found = entities.measure(spans(true), said(predicted))
    assert found["f1"] == pytest.approx(f1_score(*both, zero_division=0))
    assert found["precision"] == pytest.approx(precision_score(*both, zero_division=0))
    assert found["recall"] == pytest.approx(recall_score(*both, zero_division=0))
    if any(tag != "O" for side in both for row in side for tag in row):
        report = classification_report(*both, output_dict=True, zero_division=0)
        assert found["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
        for item in entities.detail(spans(true), said(predicted), LABELS)["per_class"]:
            expected = report.get(item["label"], {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0})
            assert item["f1"] == pytest.approx(expected["f1-score"])
            assert item["support"] == expected["support"]


@given(ROWS, st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_a_weighted_score_is_that_of_repeated_rows(rows: list[tuple[list[int], list[int]]], times: list[int]) -> None:
    counts = np.array(times[: len(rows)])
    counts[0] += not counts.any()
    true, predicted = [row[0] for row in rows], [row[1] for row in rows]
    tallies = entities.tally(spans(true), spans(predicted), len(LABELS))
    weighted = entities.weighted(None, tallies, counts[None, :].astype(float))
    repeated = [[side[i] for i in np.repeat(np.arange(len(rows)), counts)] for side in (true, predicted)]
    plain = entities.measure(spans(repeated[0]), said(repeated[1]))
    assert {name: float(value[0]) for name, value in weighted.items()} == pytest.approx(plain)


def test_hand_made_cases() -> None:
    nothing = Spans.of([[], []])
    assert entities.measure(nothing, Predictions(nothing, np.ones(2)))["f1"] == 0.0
    one = Spans.of([[(0, 5, 0)], []])
    assert entities.measure(one, Predictions(one, np.ones(2)))["f1"] == 1.0
    shorter, other = Spans.of([[(0, 4, 0)], []]), Spans.of([[(0, 5, 1)], [(2, 3, 1)]])
    assert entities.measure(one, Predictions(shorter, np.ones(2)))["f1"] == 0.0
    errors = [entities.detail(one, Predictions(found, np.ones(2)), LABELS)["errors"] for found in (shorter, other)]
    assert errors[0] == {"type": 0, "bounds": 1, "invented": 0, "missed": 0}
    assert errors[1] == {"type": 1, "bounds": 0, "invented": 1, "missed": 0}
    confusions = entities.detail(one, Predictions(other, np.ones(2)), LABELS)["confusions"]
    assert confusions == [{"target": "LOC", "predicted": "ORG", "count": 1, "share": 1.0}]
    with pytest.raises(ValueError, match="2 targets and 1 predictions"):
        entities.measure(one, Predictions(Spans.of([[]]), np.ones(1)))
