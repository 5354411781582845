"""Scores of numbers: Pearson's and Spearman's correlation and the root of the mean squared error.

As in `classification`, each score is a function of weighted rows, so that one formula serves the point estimate and
the bootstrap. A correlation with something constant is undefined and scored 0, without a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.core.task import Predictions

SCATTER_POINTS = 500
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_FLAT = 1e-12  # a spread below this share of the sum of squares is rounding


def measure(targets: np.ndarray, predictions: Predictions) -> dict[str, float]:
    """pearson, spearman (ties share their mean rank), rmse, and loss where row losses are known.

    Args:
        targets: numbers (n,), n ≥ 1, finite.
        predictions: `values` are finite numbers (n,).

    Raises:
        ValueError: no rows, lengths that differ, or values that are not finite.
    """
    _check(targets, predictions)
    scores = weighted(targets, predictions.values, np.ones((1, len(targets))))
    found = {name: float(value[0]) for name, value in scores.items()}
    if predictions.losses is not None:
        found["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return found


def weighted(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the rows.

    Args:
        targets, values: finite numbers (n,).
        weights: (r, n), how often each row counts (whole numbers ≥ 0).

    Returns:
        name -> (r,).
    """
    return {
        "pearson": weighted_pearson(targets, values, weights),
        "spearman": weighted_spearman(targets, values, weights),
        "rmse": weighted_rmse(targets, values, weights),
    }


def weighted_pearson(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation for each weighting of the rows: (n,), (n,), (r, n) -> (r,)."""
    x, y = _centred(targets), _centred(values)
    sums = weights @ np.stack([x, y, x * x, y * y, x * y], axis=1)
    return _correlation(sums, weights.sum(axis=1))


def weighted_spearman(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation, ranked anew in each weighting of the rows: (n,), (n,), (r, n) -> (r,)."""
    if np.ptp(targets) == 0 or np.ptp(values) == 0:
        return np.zeros(len(weights))
    turned = np.ascontiguousarray(weights.T)  # rows first: gathering whole rows is twice as fast
    sums = _rank_sums(_ranks(np.asarray(targets), turned), _ranks(np.asarray(values), turned), turned)
    return _correlation(sums, weights.sum(axis=1))


def weighted_rmse(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The root of the mean squared error for each weighting of the rows: (n,), (n,), (r, n) -> (r,)."""
    squares = (np.asarray(targets, dtype=np.float64) - np.asarray(values, dtype=np.float64)) ** 2
    return np.asarray(np.sqrt(weights @ squares / weights.sum(axis=1)))


def detail(targets: np.ndarray, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """A scatter sample and the spread of the residuals, as plain JSON values.

    Returns:
        {"kind": "number", "rows": n, "field": name of the target field,
         "scatter": {"targets": [...], "predictions": [...]} (at most 500 rows, evenly spaced through the file),
         "residuals": {"mean", "mean_absolute", "quantiles": {"0.05": …}} (prediction minus target),
         "targets": {"mean", "min", "max", "standard_deviation"}, "predictions": {the same}}.
    """
    _check(targets, predictions)
    truth, said = np.asarray(targets, dtype=np.float64), np.asarray(predictions.values, dtype=np.float64)
    shown = np.unique(np.linspace(0, len(truth) - 1, min(SCATTER_POINTS, len(truth))).round().astype(np.int64))
    residuals = said - truth
    return {
        "kind": "number",
        "rows": len(truth),
        "field": labels[0] if labels else "",
        "scatter": {"targets": truth[shown].tolist(), "predictions": said[shown].tolist()},
        "residuals": {
            "mean": float(residuals.mean()),
            "mean_absolute": float(np.abs(residuals).mean()),
            "quantiles": {str(q): float(np.quantile(residuals, q)) for q in QUANTILES},
        },
        "targets": _spread(truth),
        "predictions": _spread(said),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "standard_deviation": float(values.std()),
    }


def _check(targets: np.ndarray, predictions: Predictions) -> None:
    if len(targets) == 0 or np.shape(targets) != np.shape(predictions.values):
        raise ValueError(
            f"targets and predictions must have the same shape and at least one row, got {np.shape(targets)} and "
            f"{np.shape(predictions.values)}"
        )
    if not (np.isfinite(targets).all() and np.isfinite(predictions.values).all()):
        raise ValueError("targets and predictions must be finite numbers")


def _centred(values: np.ndarray) -> np.ndarray:
    """Deviations from the mean; exact zeros for a constant, where rounding would leave a spurious spread."""
    values = np.asarray(values, dtype=np.float64)
    centre = float(values[0]) if np.ptp(values) == 0 else float(values.mean())
    return values - centre


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks (n, r) of `values` (n,) when row i occurs weights[i] (r,) times."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    sizes = weights[order]
    if not starts.all():
        sizes = np.add.reduceat(sizes, np.flatnonzero(starts), axis=0)
    middle = np.cumsum(sizes, axis=0) - (sizes - 1) / 2
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.cumsum(starts) - 1
    return np.asarray(middle[group])


def _rank_sums(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of x, y, x², y², xy (r, 5) of ranks (n, r), about the middle rank."""
    middle = (weights.sum(axis=0) + 1) / 2
    x, y = x - middle, y - middle
    heavy_x, heavy_y = weights * x, weights * y
    squares = [np.einsum("nr,nr->r", one, two) for one, two in ((heavy_x, x), (heavy_y, y), (heavy_x, y))]
    return np.stack([heavy_x.sum(axis=0), heavy_y.sum(axis=0), *squares], axis=1)


def _correlation(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    x, y, xx, yy, xy = sums.T
    spread_x, spread_y = xx - x * x / rows, yy - y * y / rows
    defined = (spread_x > _FLAT * xx) & (spread_y > _FLAT * yy)
    below = np.sqrt(np.where(defined, spread_x * spread_y, 1.0))
    return np.clip(np.where(defined, (xy - x * y / rows) / below, 0.0), -1.0, 1.0)
