"""Scores of a model that was shown which of two replies is better: the rewards that it gives them.

A reply's reward is β · (log p(reply) − log p before training), with β = 0.1: Rafailov et al. (2023), Direct Preference
Optimization, equation 5 without the term that both replies share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.core.task import Predictions

BETA = 0.1


def measure(targets: np.ndarray, predictions: Predictions) -> dict[str, float]:
    """reward_accuracy (the share of rows whose chosen reply has the higher reward; a tie counts half), margin (the mean
    difference of the rewards), and loss where row losses are known.

    Args:
        targets: (n, 2) tokens of the replies; not asked.
        predictions: `values` (n,) are differences of log-ratios, chosen minus rejected.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    if not len(targets) or len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets and {len(predictions)} predictions")
    scores = weighted(targets, predictions.values, np.ones((1, len(targets))))
    found = {name: float(value[0]) for name, value in scores.items()}
    if predictions.losses is not None:
        found["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return found


def weighted(targets: Any, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the rows: (n,), (r, n) -> (r,)."""
    rows = weights.sum(axis=1)
    right = (np.sign(values) + 1) / 2
    return {"reward_accuracy": weights @ right / rows, "margin": BETA * (weights @ values) / rows}


def detail(targets: np.ndarray, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """How the rewards' differences spread, and how much longer the chosen replies are, as plain JSON values."""
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = np.quantile(BETA * np.asarray(predictions.values, dtype=np.float64), levels)
    return {
        "kind": "preference",
        "rows": len(targets),
        "margin_quantiles": {f"{level:g}": float(value) for level, value in zip(levels, quantiles, strict=True)},
        "tokens_chosen": float(np.mean(targets[:, 0])),
        "tokens_rejected": float(np.mean(targets[:, 1])),
    }
