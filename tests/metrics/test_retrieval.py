"""Ranks and scores of what is found: against scikit-learn, plain loops, and cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

from chainrule.core.task import Predictions
from chainrule.metrics import retrieval, similarity
from chainrule.metrics.retrieval import METRICS, Search, judged, measure, ordered_losses, ranks, row_scores

pytestmark = pytest.mark.unit


def relevance(known: np.ndarray, search: Search) -> np.ndarray:
    """(n, c) whether a text belongs to a row, by comparing everything with everything."""
    if known.ndim == 1:
        return np.asarray((known[:, None] == known) & ~np.eye(len(known), dtype=bool))
    pairs = {(int(anchor), int(text)) for anchor, text in known[:, :2]}
    texts = known[search.texts, 1]
    return np.array([[(int(anchor), int(text)) in pairs for text in texts] for anchor in known[:, 0]])


@pytest.mark.parametrize("kind", ["pairs", "labels"])
@pytest.mark.parametrize("block", [1, 50, 4_000_000])
def test_scores_are_those_of_scikit_learn(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    generator = np.random.default_rng(3)
    known = generator.integers(0, 12, (60, 2)) if kind == "pairs" else generator.integers(0, 9, 60)
    search = Search.made(known)
    right = relevance(known, search)
    similar = generator.normal(size=right.shape)
    found, losses = judged(search, lambda rows: similar[rows].copy())
    if kind == "pairs":
        assert len(search.texts) == len(np.unique(known[:, 1])) == 12
    for row in range(60):
        others = np.ones(right.shape[1], bool) if kind == "pairs" else np.arange(60) != row
        truth, said = right[row, others][None], similar[row, others][None]
        scores = dict(zip(METRICS, found[row, 1:], strict=True))
        assert found[row, 0] == 1
        assert scores["ndcg@10"] == pytest.approx(ndcg_score(truth, said, k=10))
        assert scores["map"] == pytest.approx(average_precision_score(truth[0], said[0]))
        assert scores["map"] == pytest.approx(label_ranking_average_precision_score(truth, said))
        order = truth[0][np.argsort(-said[0])]
        assert scores["recall@5"] == pytest.approx(order[:5].sum() / order.sum())
        first = int(order.argmax())
        assert scores["mrr@10"] == pytest.approx(1 / (1 + first) if first < 10 else 0)
        share = np.exp(20 * said[0]) / np.exp(20 * said[0]).sum()
        assert losses[row] == pytest.approx(-np.log(share[truth[0]]).mean())


def test_of_equal_similarities_those_that_do_not_belong_come_first() -> None:
    values = np.array([0.5, 0.9, 0.5, 0.5, 0.1, 0.5])
    assert ranks(values, np.array([0])).tolist() == [5]
    assert ranks(values, np.array([0, 2])).tolist() == [4, 5]
    assert ranks(values, np.array([1, 0])).tolist() == [1, 5]
    assert ranks(np.zeros(4), np.arange(4)).tolist() == [1, 2, 3, 4]


def test_scores_of_ranks_by_hand() -> None:
    scores = dict(zip(METRICS, row_scores(np.array([2, 12])), strict=True))
    assert scores["mrr@10"] == 0.5
    assert scores["map"] == pytest.approx((1 / 2 + 2 / 12) / 2)
    assert (scores["recall@1"], scores["recall@5"], scores["recall@10"]) == (0, 0.5, 0.5)
    assert scores["ndcg@10"] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    far = dict(zip(METRICS, row_scores(np.array([11])), strict=True))
    assert far["mrr@10"] == far["ndcg@10"] == far["recall@10"] == 0
    assert far["map"] == pytest.approx(1 / 11)


def test_a_row_that_has_nothing_to_find_counts_nowhere() -> None:
    known = np.array([4, 4, 7])
    found, losses = judged(Search.made(known), lambda rows: np.eye(3)[rows])
    assert found[2].tolist() == [0] * (1 + len(METRICS))
    assert losses[2] == 0
    scores = measure(known, Predictions(found, np.ones(3), losses))
    assert scores["recall@5"] == 1
    assert scores["recall@1"] == 0  # both others are as like, and the one of another label comes first
    with pytest.raises(ValueError, match="0 targets"):
        measure(known[:0], Predictions(found, np.ones(3)))


def test_every_positive_of_an_anchor_belongs_to_each_of_its_rows() -> None:
    known = np.array([[1, 10], [1, 11], [2, 10]])
    search = Search.made(known)
    assert [sorted(known[search.texts[each], 1].tolist()) for each in search.right()] == [[10, 11], [10, 11], [10]]


def test_losses_of_ordered_pairs_and_their_correlations() -> None:
    generator = np.random.default_rng(0)
    scores, cosines = generator.integers(0, 5, 30).astype(float), generator.uniform(-1, 1, 30)
    found = ordered_losses(scores, cosines)
    for i in range(30):
        gaps = [np.exp(20 * (cosines[j] - cosines[i])) for j in range(30) if scores[j] < scores[i]]
        assert found[i] == pytest.approx(np.log1p(sum(gaps)))
    said = similarity.measure(scores, Predictions(cosines, np.ones(30), found))
    assert set(said) == {"spearman", "pearson", "loss"}
    assert said["pearson"] == pytest.approx(np.corrcoef(scores, cosines)[0, 1])
