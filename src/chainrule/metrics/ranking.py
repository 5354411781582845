"""Scores of ranked lists: how far up the relevant candidates of each list stand.

Candidates with equal scores are in no order: every score is its expected value over all orders of them, so that giving
all the same score is worth what chance is worth (McSherry and Najork, 2008, Computing Information Retrieval Performance
Measures Efficiently in the Presence of Tied Scores). A candidate is relevant where its relevance is above 0.

    ndcg@10      the sum over the first 10 of relevance / log2(place + 1), over that of the best order: Järvelin and
                 Kekäläinen (2002), with relevance itself as the gain.
    mrr          1 / the place of the first relevant candidate, however far down.
    recall@10    the share of a list's relevant candidates that are among the first 10.
    hit_rate@10  whether any of them is.
    auc          the share of pairs of a relevant and another candidate that stand in the right order, equal ones half.
    coverage@10  the share of all items that are candidates of any list that stand among the first 10 of any; equal
                 scores are taken in the order of the items' numbers.

All but the last are means over lists; a list that has nothing relevant scores 0, and auc leaves out lists whose
candidates are all relevant or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import gammaln

from chainrule.core.lists import NEW_ITEM, NEW_USER, Lists, starts_of
from chainrule.core.task import Predictions

K = 10
MEANS = (f"ndcg@{K}", "mrr", f"recall@{K}", f"hit_rate@{K}")
AUC, COVERAGE = "auc", f"coverage@{K}"
METRICS = (*MEANS, AUC, COVERAGE)
_AUC, _TOP = len(MEANS), len(MEANS) + 3  # columns of a tally; after auc come whether it is defined, and all items


@dataclass(frozen=True)
class _Ties:
    """Candidates of equal scores, from the first place of each list on.

    Attributes:
        rows: (g,) the list each group is of.
        places: (g,) how many candidates of the list stand before it.
        sizes, relevant: (g,) how many candidates it has, and how many of them are relevant.
        gains: (g,) the sum of their relevances.
    """

    rows: np.ndarray
    places: np.ndarray
    sizes: np.ndarray
    relevant: np.ndarray
    gains: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """(g,) how many of each group are among the first K."""
        found: np.ndarray = np.clip(K - self.places, 0, self.sizes)
        return found


def tally(targets: Lists, values: Lists, kinds: int = 0) -> np.ndarray:
    """What each list adds to the sums.

    Args:
        values: the scores of the same candidates.
        kinds: not asked; lists are of one kind.

    Returns:
        (n, 7 + K): ndcg, mrr, recall, hit, auc, whether auc is defined, how many items there are in all lists, and the
        numbers of the first K items, -1 after a list's end.
    """
    counts = np.diff(targets.offsets)
    relevant = np.bincount(targets.rows, targets.numbers > 0, len(targets))
    ties = _ties(targets, values)
    found = np.zeros((len(targets), _TOP + K))
    found[:, 0] = _ratio(_gained(ties, len(targets)), _best(targets))
    found[:, 1], found[:, 3] = _first(ties, len(targets))
    found[:, 2] = _ratio(np.bincount(ties.rows, ties.relevant * ties.seen / ties.sizes, len(targets)), relevant)
    found[:, _AUC] = _ratio(_ordered(ties, counts - relevant), relevant * (counts - relevant))
    found[:, _AUC + 1] = (relevant > 0) & (relevant < counts)
    found[:, _AUC + 2] = 0 if targets.items is None else len(np.unique(targets.items))
    found[:, _TOP:] = _top(targets, values)
    return found


def _places(lists: Lists) -> np.ndarray:
    """(k,) the place of each candidate in its list, from 0 on, as they stand."""
    found: np.ndarray = np.arange(len(lists.numbers)) - np.repeat(lists.offsets[:-1], np.diff(lists.offsets))
    return found


def _ties(targets: Lists, values: Lists) -> _Ties:
    order = np.lexsort((-values.numbers, targets.rows))
    rows, scores, gains = targets.rows[order], values.numbers[order], targets.numbers[order].astype(np.float64)
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (scores[1:] != scores[:-1])
    starts = np.flatnonzero(first)
    if not len(starts):
        return _Ties(*(np.zeros(0, np.int64) for _ in range(5)))
    sizes = np.diff(np.append(starts, len(rows)))
    relevant = np.add.reduceat((gains > 0).astype(np.int64), starts)
    return _Ties(rows[starts], _places(targets)[starts], sizes, relevant, np.add.reduceat(gains, starts))


def _gained(ties: _Ties, lists: int) -> np.ndarray:
    """(lists,) expected DCG: all of a group share its gains and its discounts."""
    discounts = np.concatenate([np.zeros(1), np.cumsum(1 / np.log2(np.arange(2, K + 2)))])
    shares = discounts[np.minimum(ties.places + ties.sizes, K)] - discounts[np.minimum(ties.places, K)]
    return np.bincount(ties.rows, ties.gains / ties.sizes * shares, lists)


def _best(targets: Lists) -> np.ndarray:
    """(n,) DCG of the best order."""
    gains = targets.numbers[np.lexsort((-targets.numbers, targets.rows))].astype(np.float64)
    places = _places(targets)
    return np.bincount(targets.rows, np.where(places < K, gains / np.log2(places + 2), 0), len(targets))


def _first(ties: _Ties, lists: int) -> tuple[np.ndarray, np.ndarray]:
    """(lists,) the expected reciprocal of the first relevant place, and the chance that it is among the first K.

    In a group of m with r relevant ones, j others stand before the first of these with probability
    C(m − 1 − j, r − 1) / C(m, r).
    """
    reciprocal, hit = np.zeros(lists), np.zeros(lists)
    some = np.flatnonzero(ties.relevant > 0)
    rows, firsts = np.unique(ties.rows[some], return_index=True)
    groups = some[firsts]
    columns = (ties.places[groups], ties.sizes[groups], ties.relevant[groups])
    for row, place, size, relevant in zip(rows, *columns, strict=True):
        before = np.arange(size - relevant + 1)
        chance = np.exp(_choose(size - 1 - before, relevant - 1) - _choose(size, relevant))
        reciprocal[row] = (chance / (place + 1 + before)).sum()
        hit[row] = chance[before < K - place].sum()
    return reciprocal, np.minimum(hit, 1.0)


def _choose(n: Any, k: Any) -> Any:
    """The logarithm of the number of ways to choose k of n."""
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _ordered(ties: _Ties, others: np.ndarray) -> np.ndarray:
    """(n,) pairs of a relevant and another candidate in the right order, equal ones half.

    Args:
        others: (n,) candidates of each list that are not relevant.
    """
    own = ties.sizes - ties.relevant
    before = np.cumsum(own) - np.concatenate([np.zeros(1), np.cumsum(others)])[ties.rows]  # this group's included
    return np.bincount(ties.rows, ties.relevant * (others[ties.rows] - before + own / 2), len(others))


def _top(targets: Lists, values: Lists) -> np.ndarray:
    found = np.full((len(targets), K), -1.0)
    if targets.items is not None and len(targets.items):
        places = _places(targets)
        order = np.lexsort((targets.items, -values.numbers, targets.rows))
        found[targets.rows[places < K], places[places < K]] = targets.items[order][places < K]
    return found


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return found


def weighted(targets: Any, tallies: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the lists.

    Args:
        targets: not asked; `tallies` hold what they say.
        tallies: (n, 7 + K) of `tally`.
        weights: (r, n), how often each list counts.

    Returns:
        name -> (r,).
    """
    count = weights.sum(axis=1)
    found = {name: _ratio(weights @ tallies[:, column], count) for column, name in enumerate(MEANS)}
    defined = tallies[:, _AUC + 1]
    found[AUC] = _ratio(weights @ (tallies[:, _AUC] * defined), weights @ defined)
    rows, places = np.nonzero(tallies[:, _TOP:] >= 0)
    items, columns = np.unique(tallies[rows, _TOP + places], return_inverse=True)
    ones = np.ones(len(rows))
    shown = sparse.csr_matrix((ones, (columns, rows)), shape=(len(items), len(tallies)))
    covered = (np.asarray(shown @ (weights > 0).T) > 0).sum(axis=0)
    found[COVERAGE] = covered / max(float(tallies[:, _AUC + 2].max(initial=1)), 1)
    return found


def measure(targets: Lists, predictions: Predictions) -> dict[str, float]:
    """All scores that stand above, and loss where it is known.

    Raises:
        ValueError: no lists, or candidates that differ.
    """
    if not len(targets) or not np.array_equal(targets.offsets, predictions.values.offsets):
        raise ValueError(
            f"{len(targets)} lists and {len(predictions)} predictions, which must have the same candidates"
        )
    scores = weighted(None, tally(targets, predictions.values), np.ones((1, len(targets))))
    found = {name: float(value[0]) for name, value in scores.items()}
    if predictions.losses is not None:
        found["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return found


def detail(targets: Lists, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """What was ranked, and how well lists are ranked whose user or items training rows lack, as plain JSON values.

    Returns:
        {"kind": "lists", "rows": n, "candidates": mean number a list, "relevant": the same of relevant ones, "apart":
        {"known_users", "new_users", "new_items": {"lists": n, name -> score}}}, the last without what there is none of;
        new items are ranked among the candidates that are not relevant.
    """
    rows = max(len(targets), 1)
    groups: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    cold = np.zeros(len(targets.numbers), np.uint8) if targets.cold is None else targets.cold
    every, relevant = np.ones(len(cold), bool), targets.numbers > 0
    if (cold & NEW_USER).any():
        new = np.bincount(targets.rows, cold & NEW_USER, len(targets)) > 0
        groups |= {"known_users": (~new, every), "new_users": (new, every)}
    if (relevant & (cold & NEW_ITEM > 0)).any():
        groups["new_items"] = np.ones(len(targets), bool), ~relevant | (cold & NEW_ITEM > 0)
    apart = {name: _scores_of(targets, predictions.values, *chosen) for name, chosen in groups.items()}
    return {
        "kind": "lists",
        "rows": len(targets),
        "candidates": round(len(targets.numbers) / rows, 2),
        "relevant": round(float((targets.numbers > 0).sum()) / rows, 2),
        "apart": {name: scores for name, scores in apart.items() if scores["lists"]},
    }


def _scores_of(targets: Lists, values: Lists, lists: np.ndarray, candidates: np.ndarray) -> dict[str, float]:
    """The mean scores of some lists, of some of their candidates, where anything of them is relevant."""
    kept = candidates & lists[targets.rows]
    relevant = np.bincount(targets.rows, kept & (targets.numbers > 0), len(targets)) > 0
    kept &= relevant[targets.rows]
    counts = np.bincount(targets.rows[kept], minlength=len(targets))[relevant]
    offsets = starts_of(counts)
    few = Lists(offsets, targets.numbers[kept]), Lists(offsets, values.numbers[kept])
    means = tally(*few)[:, : len(MEANS)].mean(axis=0) if relevant.any() else np.zeros(len(MEANS))
    return {"lists": int(relevant.sum()), **dict(zip(MEANS, map(float, means), strict=True))}
