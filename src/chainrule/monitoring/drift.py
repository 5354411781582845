"""Whether rows are still like those of the reference: by counts in bins, and by the mean of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, chi2_contingency

FEWEST = 5.0  # expected in a bin, so that chi-square holds; bins with fewer are joined


@dataclass(frozen=True)
class Drift:
    """How far rows are from the reference.

    Attributes:
        what: of the rows: "label", "length", "unknown", "score" or "vector".
        probability: of a distance as large while nothing has changed.
        size: the population stability index of counts; of vectors the Mahalanobis distance of the means.
        limit: the size that is exceeded by chance with the probability that an alarm may have.
        rows: that were compared.
        told: where the largest difference lies, in words.
    """

    what: str
    probability: float
    size: float
    limit: float
    rows: int
    told: str = ""


def count_drift(
    what: str, before: Sequence[float], now: Sequence[float], alarm: float, names: Sequence[str] = ()
) -> Drift | None:
    """Compare counts in bins: chi-square of homogeneity for the probability, the PSI for the size.

    Both counts are samples. While nothing changes the PSI times n·m / (n + m) is chi-square too (Yurdakul and Naranjo,
    "Statistical properties of the population stability index", 2020), which gives its limit; no rule of thumb is used.

    Args:
        alarm: the probability that an alarm may have by chance.
        names: of the bins.

    Returns:
        None where fewer than two bins have enough rows.
    """
    first, second = np.asarray(before, float), np.asarray(now, float)
    n, m = first.sum(), second.sum()
    if n <= 0 or m <= 0:
        return None
    rare = (first + second) * min(n, m) / (n + m) < FEWEST
    table = np.array([first[~rare], second[~rare]])
    kept = [str(names[place]) if names else f"bin {place}" for place in np.flatnonzero(~rare).tolist()]
    if rare.any():
        rest = np.array([[first[rare].sum()], [second[rare].sum()]])
        if rest.sum() * min(n, m) / (n + m) >= FEWEST or not table.shape[1]:
            table, kept = np.hstack([table, rest]), [*kept, "the rest"]
        else:  # too few even together: with the smallest of the others
            place = int(table.sum(axis=0).argmin())
            table[:, place] += rest[:, 0]
            kept[place] += " and rare ones"
    if table.shape[1] < 2:
        return None
    probability = float(chi2_contingency(table, correction=False).pvalue)
    shares = (table + 0.5) / (table + 0.5).sum(axis=1, keepdims=True)
    parts = (shares[1] - shares[0]) * np.log(shares[1] / shares[0])
    limit = float(chi2.isf(alarm, table.shape[1] - 1) * (1 / n + 1 / m))
    place = int(parts.argmax())
    told = f"{kept[place]}: {100 * table[1, place] / m:.1f} % of rows, {100 * table[0, place] / n:.1f} % expected"
    return Drift(what, probability, float(parts.sum()), limit, int(m), told)


def vector_drift(before: tuple[np.ndarray, np.ndarray, int], now: tuple[np.ndarray, int], alarm: float) -> Drift | None:
    """Compare means of vectors: Hotelling's T² with the reference's covariance, asymptotically chi-square.

    Args:
        before: mean (d,), covariance (d, d) and rows of the reference.
        now: mean (d,) and rows.
        alarm: the probability that an alarm may have by chance.

    Returns:
        None where the covariance has no rank, or rows are too few for the asymptotics.
    """
    mean, covariance, n = before
    other, m = now
    values, axes = np.linalg.eigh(covariance)
    kept = values > max(values.max(), 0.0) * 1e-6
    if not kept.any() or n < 5 * kept.sum() or m < 2 * kept.sum():
        return None
    away = axes[:, kept].T @ (other - mean) / np.sqrt(values[kept])
    square = float(away @ away)
    freedom, factor = int(kept.sum()), n * m / (n + m)
    limit = float(np.sqrt(chi2.isf(alarm, freedom) / factor))
    return Drift("vector", float(chi2.sf(square * factor, freedom)), float(np.sqrt(square)), limit, m)
