"""Scores of ranked lists against scikit-learn, against the mean over all orders of ties, and by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from chainrule.core.lists import NEW_ITEM, NEW_USER, Lists, starts_of
from chainrule.core.task import Predictions
from chainrule.metrics.ranking import METRICS, K, detail, measure, tally, weighted

pytestmark = pytest.mark.unit
Rows = list[list[float]]


def lists(rows: Rows, items: list[list[int]] | None = None, cold: list[list[int]] | None = None) -> Lists:
    flat = np.array([number for row in rows for number in row], np.float32)
    numbers = items or [list(range(len(row))) for row in rows]
    flags = cold or [[0] * len(row) for row in rows]
    known = (
        np.array([n for row in values for n in row], kind) for values, kind in ((numbers, np.int32), (flags, np.uint8))
    )
    return Lists(starts_of(np.array([len(row) for row in rows], np.int64)), flat, *known)


def said(rows: Rows, losses: list[float] | None = None) -> Predictions:
    values = lists(rows).scored(np.array([number for row in rows for number in row]))
    return Predictions(values, np.ones(len(rows)), None if losses is None else np.array(losses))


def scores(relevances: Rows, given_scores: Rows) -> dict[str, float]:
    return measure(lists(relevances), said(given_scores))


def plain(relevances: list[float]) -> dict[str, float]:
    """The definitions, of candidates in an order without ties."""
    relevant = [value > 0 for value in relevances]
    first = relevant.index(True) if any(relevant) else None
    wrong = sum(b and not a for i, a in enumerate(relevant) for b in relevant[i + 1 :])
    pairs = sum(relevant) * (len(relevant) - sum(relevant))
    return {
        "mrr": 0.0 if first is None else 1 / (first + 1),
        f"recall@{K}": sum(relevant[:K]) / max(sum(relevant), 1),
        f"hit_rate@{K}": float(any(relevant[:K])),
        "auc": 1 - wrong / pairs if pairs else 0.0,
    }


def test_hand_made_list() -> None:
    found = scores([[0, 2, 0, 1]], [[0.9, 0.8, 0.1, 0.3]])
    best = 2 + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx((2 / np.log2(3) + 1 / np.log2(4)) / best, rel=1e-6)
    assert found["mrr"] == 0.5
    assert found["auc"] == pytest.approx(2 / 4)
    assert found["recall@10"] == found["hit_rate@10"] == found["coverage@10"] == 1
    assert tuple(found) == METRICS


@given(st.integers(0, 2**32 - 1))
def test_parity_with_scikit_learn_ties_included(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(2, 30) for _ in range(4)]
    relevances = [draw.integers(0, 4, count).astype(float).tolist() for count in rows]
    given_scores = [draw.integers(0, 5, count).astype(float).tolist() for count in rows]
    table = tally(lists(relevances), said(given_scores).values)
    for row, (wanted, predicted) in enumerate(zip(relevances, given_scores, strict=True)):
        expected = ndcg_score([wanted], [predicted], k=K)
        assert table[row, 0] == pytest.approx(expected, abs=1e-6)
        labels = np.array(wanted) > 0
        assert table[row, 5] == (0 < labels.sum() < len(labels))
        if table[row, 5]:
            assert table[row, 4] == pytest.approx(roc_auc_score(labels, predicted), abs=1e-9)


@pytest.mark.parametrize("relevances", [[0, 1, 0, 1, 0], [1, 1, 0], [0, 0, 0, 1], [1]])
def test_a_tie_is_worth_the_mean_over_its_orders(relevances: list[float]) -> None:
    ahead = [0.0] * 8  # so that the tie lies across the tenth place
    found = scores([ahead + relevances], [[1.0] * 8 + [0.5] * len(relevances)])
    orders = [plain(ahead + list(order)) for order in permutations(relevances)]
    for name in ("mrr", "recall@10", "hit_rate@10", "auc"):
        assert found[name] == pytest.approx(np.mean([order[name] for order in orders])), name


@given(st.integers(0, 2**32 - 1))
def test_orders_without_ties_follow_the_definitions(seed: int) -> None:
    draw = np.random.default_rng(seed)
    relevances = draw.integers(0, 2, draw.integers(1, 40)).astype(float)
    order = draw.permutation(len(relevances))
    found = scores([relevances.tolist()], [(-order).astype(float).tolist()])
    expected = plain(relevances[np.argsort(order)].tolist())
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_lists_that_are_empty_all_relevant_or_not_at_all() -> None:
    assert scores([[1, 2]], [[0, 1]]) | {"auc": 0.0} == scores([[1, 2]], [[0, 1]])  # auc is not defined
    assert scores([[1, 1]], [[3, 3]])["ndcg@10"] == pytest.approx(1)
    nothing = scores([[0, 0], []], [[1, 2], []])
    assert {name: nothing[name] for name in METRICS[:5]} == dict.fromkeys(METRICS[:5], 0.0)
    half = scores([[0, 1], [1, 1]], [[0, 1], [0, 1]])
    assert half["auc"] == 1  # of the one list that has both
    with pytest.raises(ValueError, match="same candidates"):
        scores([[0, 1]], [[1.0]])


def test_coverage_counts_items_once_and_of_all_there_are() -> None:
    many = [1.0] + [0.0] * 11
    items = [list(range(12)), list(range(6, 18))]
    found = measure(lists([many, many], items), said([[12.0 - n for n in range(12)]] * 2))
    assert found["coverage@10"] == pytest.approx(16 / 18)  # 0 to 9 and 6 to 15 of 0 to 17


def test_weights_are_repetitions() -> None:
    draw = np.random.default_rng(0)
    relevances = [draw.integers(0, 2, 14).astype(float).tolist() for _ in range(6)]
    given_scores = [draw.integers(0, 6, 14).astype(float).tolist() for _ in range(6)]
    table = tally(lists(relevances), said(given_scores).values)
    weights = np.array([2.0, 0, 1, 3, 0, 1])
    repeated = np.repeat(np.arange(6), weights.astype(int))
    found = weighted(None, table, weights[None])
    again = weighted(None, table[repeated], np.ones((1, len(repeated))))
    for name in METRICS:
        assert found[name] == pytest.approx(again[name]), name


def test_new_users_and_new_items_are_told_apart() -> None:
    relevances: Rows = [[1, 0], [1, 0], [1, 1, 0]]
    cold = [[0, 0], [NEW_USER, NEW_USER], [NEW_ITEM, 0, 0]]
    found = detail(lists(relevances, cold=cold), said([[2, 1], [1, 2], [1, 3, 2]]), ())
    assert found["candidates"] == pytest.approx(2.33)
    assert found["apart"]["known_users"]["lists"] == 2
    assert found["apart"]["new_users"] == {
        "lists": 1, "ndcg@10": pytest.approx(1 / np.log2(3)), "mrr": 0.5, "recall@10": 1, "hit_rate@10": 1
    }  # fmt: skip
    assert found["apart"]["new_items"]["lists"] == 1
    assert found["apart"]["new_items"]["mrr"] == 0.5  # behind the one candidate that is not relevant
    assert detail(lists([[1, 0]]), said([[1, 0]]), ())["apart"] == {}


def test_loss_is_the_mean_over_lists() -> None:
    assert measure(lists([[1, 0], [0, 1]]), said([[1, 0], [1, 0]], [0.5, 1.5]))["loss"] == 1
