"""Scores of vectors that find: how high among all texts of a split stands what belongs to a row.

    recall@k   the share of what belongs to a row that is among the first k.
    mrr@10     1 / the rank of the first that belongs, 0 where it is not among the first ten.
    ndcg@10    Σ 1 / log2(1 + rank) of what belongs among the first ten, over the most that could be
               (Järvelin and Kekäläinen, 2002).
    map        the mean over what belongs of the precision at its rank.

Of equal similarities those that do not belong come first, so that ties never flatter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from chainrule.core.task import Predictions

CUTS = (1, 5, 10)
DEPTH = 10  # of mrr and ndcg
SCALE = 20.0  # of cosines in the loss
METRICS = ("ndcg@10", "mrr@10", "map", "recall@1", "recall@5", "recall@10")
BLOCK = 4_000_000  # similarities held at once

Similar = Callable[[np.ndarray], np.ndarray]  # positions of rows -> (rows, texts)


@dataclass(frozen=True)
class Search:
    """Who looks for what.

    Attributes:
        texts: (c,) row of each text that may be found.
        asks: (n,) numbers; rows with the same one look for the same.
        answers: (c,) the same numbers of each text: what it belongs to. A text may belong to several rows' numbers, so
            there may be more than one entry for it.
        of: (a,) positions in `texts` of those entries.
        own: (n,) position in `texts` of the row itself, which is left out; −1 where it is not among them.
    """

    texts: np.ndarray
    asks: np.ndarray
    answers: np.ndarray
    of: np.ndarray
    own: np.ndarray

    @classmethod
    def made(cls, known: np.ndarray) -> Search:
        """The search of a split.

        Args:
            known: (n, s) numbers of texts: every row's first text looks among all different second ones. Or (n,)
                labels: every row looks for the others of its label among all others.
        """
        rows = np.arange(len(known))
        if known.ndim == 1:
            return cls(rows, known, known, rows, rows)
        _, first, place = np.unique(known[:, 1], return_index=True, return_inverse=True)
        pairs = np.unique(np.stack([known[:, 0], place], 1), axis=0)
        return cls(first, known[:, 0], pairs[:, 0], pairs[:, 1], np.full(len(known), -1))

    def right(self) -> Iterator[np.ndarray]:
        """Of each row the positions in `texts` of what belongs to it."""
        order = np.argsort(self.answers, kind="stable")
        answers, of = self.answers[order], self.of[order]
        starts, ends = np.searchsorted(answers, self.asks, "left"), np.searchsorted(answers, self.asks, "right")
        for start, end, own in zip(starts.tolist(), ends.tolist(), self.own.tolist(), strict=True):
            found = of[start:end]
            yield found[found != own]


def judged(search: Search, similar: Similar) -> tuple[np.ndarray, np.ndarray]:
    """Every row's scores and its loss; memory does not grow with the rows but for the results.

    Args:
        similar: cosines of some rows with all texts that may be found.

    Returns:
        (n, 1 + len(METRICS)): 1 where there is something to be found, and the scores (0 where there is not); and (n,)
        the mean over what belongs of −log of its share of Σ exp(20 · cosine).
    """
    rows, right = len(search.asks), search.right()
    found, losses = np.zeros((rows, 1 + len(METRICS))), np.zeros(rows)
    size = max(1, BLOCK // max(1, len(search.texts)))
    for start in range(0, rows, size):
        few = np.arange(start, min(start + size, rows))
        for row, values in zip(few.tolist(), similar(few), strict=True):
            wanted = next(right)
            if search.own[row] >= 0:
                values[search.own[row]] = -np.inf
            if len(wanted):
                found[row] = [1.0, *row_scores(ranks(values, wanted))]
                losses[row] = float(logsumexp(SCALE * values) - SCALE * values[wanted].mean())
    return found, losses


def ranks(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The ranks, from 1 on and ascending, of those at the positions `wanted` when the largest value comes first.

    Of equal values those that are not wanted come first.
    """
    own = np.sort(values[wanted])[::-1]
    ordered = np.sort(values)
    as_high = len(values) - np.searchsorted(ordered, own, "left")
    of_them = len(own) - np.searchsorted(own[::-1], own, "left")
    return np.asarray(as_high - of_them + np.arange(1, len(own) + 1))


def row_scores(places: np.ndarray) -> list[float]:
    """`METRICS` of one row from the ranks of all that belongs to it, ascending."""
    near = places[places <= DEPTH]
    best = (1 / np.log2(1 + np.arange(1, min(len(places), DEPTH) + 1))).sum()
    gain = (1 / np.log2(1 + near)).sum() / best
    first = 1 / places[0] if len(near) else 0.0
    precision = float(np.mean(np.arange(1, len(places) + 1) / places))
    return [float(gain), float(first), precision, *(float(np.mean(places <= cut)) for cut in CUTS)]


def weighted(targets: Any, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the rows: (n, 7), (r, n) -> (r,). Nothing to be found is 0.

    Args:
        targets: not asked.
    """
    rows = weights @ values[:, 0]
    sums = weights @ values[:, 1:]
    means = np.divide(sums, rows[:, None], out=np.zeros_like(sums), where=rows[:, None] > 0)
    return dict(zip(METRICS, means.T, strict=True))


def measure(targets: Any, predictions: Predictions) -> dict[str, float]:
    """The mean of every metric over the rows that have something to find, and of the row losses.

    Args:
        targets: not asked; `values` (n, 7) are those of `judged`.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    if not len(targets) or len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets and {len(predictions)} predictions")
    scores = weighted(None, predictions.values, np.ones((1, len(targets))))
    found = {name: float(value[0]) for name, value in scores.items()}
    if predictions.losses is not None:
        found["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return found


def detail(targets: Any, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """How many rows find nothing of theirs first, among the first ten, or at all, as plain JSON values."""
    some, first, ten = (predictions.values[:, column] for column in (0, 1 + METRICS.index("recall@1"), 6))
    return {
        "kind": "relation",
        "rows": len(targets),
        "searches": int(some.sum()),
        "found_first": int((first > 0).sum()),
        "found_in_ten": int((ten > 0).sum()),
    }


def ordered_losses(scores: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """(n,) of scored pairs: log(1 + Σ exp(20 · (cosine of j − cosine of i))) over the rows j with a lower score."""
    losses = np.zeros(len(scores))
    size = max(1, BLOCK // max(1, len(scores)))
    for start in range(0, len(scores), size):
        few = slice(start, start + size)
        gaps = SCALE * (cosines[None] - cosines[few, None])
        gaps[scores[few, None] <= scores[None]] = -np.inf
        losses[few] = np.logaddexp(0, logsumexp(gaps, axis=1))
    return losses
