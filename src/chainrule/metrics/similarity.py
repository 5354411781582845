"""Scores of cosines of pairs against given scores: their correlations, whatever the scores' unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.core.task import Predictions
from chainrule.metrics import regression


def measure(targets: np.ndarray, predictions: Predictions) -> dict[str, float]:
    """spearman, pearson, and loss where row losses are known; as in `regression`."""
    scores = regression.measure(targets, predictions)
    return {name: value for name, value in scores.items() if name != "rmse"}


def detail(targets: np.ndarray, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """How the cosines spread, as plain JSON values."""
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = np.quantile(np.asarray(predictions.values, dtype=np.float64), levels)
    shown = {f"{level:g}": float(value) for level, value in zip(levels, quantiles, strict=True)}
    return {"kind": "similarity", "rows": len(targets), "cosine_quantiles": shown}
