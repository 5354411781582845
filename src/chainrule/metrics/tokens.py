"""Scores of written replies, token by token: loss, perplexity and accuracy over all tokens that were to be written.

A row is a reply of some number of tokens, so every score is a ratio of sums over rows: long replies weigh more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.core.task import Predictions

MAX_LOSS = 700.0  # exp of more is no finite float


def measure(targets: np.ndarray, predictions: Predictions) -> dict[str, float]:
    """token_accuracy, and where row losses are known loss (nats per token) and perplexity.

    Args:
        targets: how many tokens each reply has (n,), all ≥ 1.
        predictions: `values` are how many of them were the first choice, `losses` each reply's mean loss per token.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    if not len(targets) or len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets and {len(predictions)} predictions")
    ones = np.ones((1, len(targets)))
    found = {name: float(value[0]) for name, value in weighted(targets, predictions.values, ones).items()}
    if predictions.losses is not None:
        scores = weighted_losses(targets, predictions.losses[:, None], ones)
        found |= {name: float(value[0, 0]) for name, value in scores.items()}
    return found


def weighted(targets: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """token_accuracy for each of r weightings of the rows: (n,), (n,), (r, n) -> (r,)."""
    tokens = np.asarray(targets, dtype=np.float64)
    return {"token_accuracy": weights @ np.asarray(values, dtype=np.float64) / (weights @ tokens)}


def weighted_losses(targets: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """loss and perplexity for each of r weightings of the rows and k predictors: (n,), (n, k), (r, n) -> (r, k)."""
    tokens = np.asarray(targets, dtype=np.float64)
    sums = weights @ (np.asarray(losses, dtype=np.float64) * tokens[:, None])
    loss = sums / (weights @ tokens)[:, None]
    return {"loss": loss, "perplexity": np.exp(np.minimum(loss, MAX_LOSS))}


def detail(targets: np.ndarray, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """How many tokens were scored, and how the rows' own losses spread, as plain JSON values."""
    found: dict[str, Any] = {"kind": "reply", "tokens": int(np.sum(targets))}
    if predictions.losses is not None:
        levels = (0.05, 0.25, 0.5, 0.75, 0.95)
        values = np.quantile(np.asarray(predictions.losses, dtype=np.float64), levels)
        found["row_loss_quantiles"] = {f"{level:g}": float(value) for level, value in zip(levels, values, strict=True)}
    return found
