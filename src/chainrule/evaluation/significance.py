"""How sure a score is: bootstrap intervals, and paired tests of two predictors on the same rows.

Rows are resampled as counts: a score is a function of weighted rows, and equal rows (for classes: equal targets and
equal predictions) are one cell whose count is drawn at once. Drawing the cells' counts from a multinomial distribution
is the same as drawing rows with replacement, only faster.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15; Hesterberg, "What Teachers
Should Know About the Bootstrap" (2015) for the expanded percentile interval, which makes up for the bootstrap's too
small spread in small samples; Efron (1987) for BCa; McNemar (1947) for paired shares, in its exact form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

REPLICATES = 2_000
LEVEL = 0.05  # of the two-sided tests; intervals cover 1 − LEVEL
_CHUNK = 4_000_000  # weights held at once
_JACKKNIFE_CELLS = 2_000

Weighted = Callable[[np.ndarray], np.ndarray]  # weights (r, cells) -> scores (r, scores)


class Comparison(NamedTuple):
    """A paired difference (positive: the first predictor is better) with its 95 % interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap(score: Weighted, counts: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """The scores of resampled rows.

    Args:
        score: from weights (r, cells) to scores (r, k).
        counts: how many rows each cell holds (cells,); all ones where every row is its own cell.
        replicates: how many resamples.
        seed: the same seed gives the same resamples.

    Returns:
        (replicates, k).
    """
    generator = np.random.default_rng(seed)
    return np.concatenate([score(weights) for weights in _resamples(np.asarray(counts), replicates, generator)])


def acceleration(score: Weighted, counts: np.ndarray) -> np.ndarray:
    """How fast each score's spread changes with the score itself (k,), by the jackknife; `corrected_interval` asks it.

    With more than 2,000 cells it is taken as 0: it shrinks with the root of the rows and costs their square.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if len(counts) > _JACKKNIFE_CELLS or counts.sum() < 2:
        return np.zeros(score(counts[None, :]).shape[1])
    pieces, start = [], 0
    for size in _chunks(len(counts), len(counts)):
        cells = np.arange(start, start + size)
        pieces.append(score(counts - (cells[:, None] == np.arange(len(counts)))))
        start += size
    return _skew(np.concatenate(pieces), counts)


def mean_acceleration(values: np.ndarray) -> np.ndarray:
    """`acceleration` of the means of columns (n, k) -> (k,), for any n."""
    return _skew(-np.asarray(values, dtype=np.float64), np.ones(len(values)))


def interval(replicates: np.ndarray, rows: int) -> tuple[float, float]:
    """The expanded percentile interval at 95 %.

    Args:
        replicates: bootstrap scores (R,).
        rows: how many rows the score was computed from.
    """
    tail = _tail(LEVEL, rows)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def corrected_interval(value: float, replicates: np.ndarray, rows: int, accelerated: float) -> tuple[float, float]:
    """The BCa interval at 95 %, expanded as `interval` is: for scores whose bootstrap is biased (macro F1, RMSE).

    Args:
        value: the observed score.
        replicates: bootstrap scores (R,).
        rows: how many rows the score was computed from.
        accelerated: from `acceleration`.
    """
    share = (np.mean(replicates < value) + np.mean(replicates <= value)) / 2
    bias = float(stats.norm.ppf(np.clip(share, 0.01, 0.99)))
    reach = -float(stats.norm.ppf(max(_tail(LEVEL, rows), 1e-12)))
    ends = bias + np.array([-reach, reach])
    stretched = bias + ends / np.maximum(1 - accelerated * ends, 0.1)
    low, high = np.quantile(replicates, stats.norm.cdf(stretched))
    return float(low), float(high)


def proportion_interval(right: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927): unlike the bootstrap's it has a width when all rows are right."""
    found = stats.binomtest(right, rows).proportion_ci(1 - LEVEL, method="wilson")
    return float(found.low), float(found.high)


def compare(difference: float, replicates: np.ndarray, rows: int, randomization_p: float) -> Comparison:
    """Join the bootstrap interval of a paired difference with a randomization test, so that they never disagree.

    The p-value is the larger of the randomization test's and of the level at which the interval would just touch 0.
    Where the randomization test does not reject, the interval is widened to hold 0: it is then the smallest interval
    that holds every difference that one of the two tests does not reject. So p < 0.05 exactly if 0 lies outside.

    Args:
        difference: the observed difference, positive if the first predictor is better.
        replicates: bootstrap differences (R,).
        rows: how many rows were compared.
        randomization_p: from `mcnemar` or `randomization`.
    """
    low, high = interval(replicates, rows)
    if randomization_p >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    p_value = max(randomization_p, _inverted(replicates, rows))
    if (low > 0 or high < 0) != (p_value < LEVEL):  # quantiles interpolate, tail counts do not
        low, high, p_value = min(low, 0.0), max(high, 0.0), max(p_value, LEVEL)
    return Comparison(difference, low, high, p_value)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """The exact two-sided p-value that two predictors are right equally often, from whether each row is right (n,).

    It is the randomization test of a share in closed form.
    """
    first_only = int(np.sum(first_right & ~second_right))
    second_only = int(np.sum(second_right & ~first_right))
    if first_only + second_only == 0:
        return 1.0
    return float(stats.binomtest(first_only, first_only + second_only).pvalue)


def randomization(
    difference: Callable[[np.ndarray], np.ndarray],
    counts: np.ndarray,
    observed: float,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> float:
    """The two-sided p-value of a difference, by swapping the two predictors in each row with probability one half.

    Args:
        difference: from swapped counts (r, cells), how many rows of each cell are swapped, to differences (r,).
        counts: how many rows each cell holds (cells,).
        observed: the difference without swaps.
        replicates: how many random swaps.
        seed: the same seed gives the same swaps.
    """
    generator = np.random.default_rng(seed)
    counts = np.asarray(counts)
    as_far = 0
    for size in _chunks(replicates, 2 * len(counts)):
        swapped = generator.binomial(counts, 0.5, size=(size, len(counts))).astype(np.float64)
        as_far += int(np.sum(np.abs(difference(swapped)) >= abs(observed) - 1e-12))
    return (as_far + 1) / (replicates + 1)


def _resamples(counts: np.ndarray, replicates: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights (r, cells) of resampled rows, in pieces."""
    cells, rows = len(counts), int(counts.sum())
    if cells * 8 < rows:
        for size in _chunks(replicates, cells):
            yield generator.multinomial(rows, counts / rows, size=size).astype(np.float64)
        return
    cell_of_row = np.repeat(np.arange(cells, dtype=np.int64), counts)
    for size in _chunks(replicates, rows):
        drawn = cell_of_row[generator.integers(0, rows, size=(size, rows), dtype=np.int32)]
        drawn += np.arange(size)[:, None] * cells
        yield np.bincount(drawn.ravel(), minlength=size * cells).reshape(size, cells).astype(np.float64)


def _chunks(replicates: int, columns: int) -> Iterator[int]:
    size = min(replicates, max(1, _CHUNK // columns))
    for start in range(0, replicates, size):
        yield min(size, replicates - start)


def _skew(without: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Efron's acceleration from the scores (cells, k) without one row of each cell."""
    gaps = counts @ without / counts.sum() - without
    spread = counts @ gaps**2
    return np.where(spread > 0, counts @ gaps**3 / (6 * np.where(spread > 0, spread, 1.0) ** 1.5), 0.0)


def _tail(level: float, rows: int) -> float:
    """The share of replicates to cut off at each end so that the interval is as wide as Student's t asks for."""
    if rows < 2:
        return 0.0
    return float(stats.norm.sf(np.sqrt(rows / (rows - 1)) * stats.t.isf(level / 2, rows - 1)))


def _inverted(replicates: np.ndarray, rows: int) -> float:
    """The level at which the interval of `interval` would just touch 0."""
    tail = min(float(np.mean(replicates <= 0)), float(np.mean(replicates >= 0)), 0.5)
    tail = max(tail, 0.5 / len(replicates))
    if rows < 2:
        return 1.0
    return float(2 * stats.t.sf(stats.norm.isf(tail) / np.sqrt(rows / (rows - 1)), rows - 1))
