"""What is predicted of a row, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.core.task import Predictions
from chainrule.inference.answers import rows_said
from chainrule.inference.ranks import Row
from chainrule.serving.served import Served

_PREFIX = "predicted_"


def answers_of(
    served: Served, inputs: Mapping[str, Sequence[str]], predictions: Predictions, cut: np.ndarray
) -> list[dict[str, Any]]:
    """What is said of each row: what `chainrule predict` writes, under names without "predicted_".

    A class has the probabilities of all labels beside it; several labels are a list, with the probability of each.

    Args:
        cut: (n,) which rows the model read in part; these have `"cut": true`.
    """
    labels = served.predictor.artifact.manifest.labels
    rows = rows_said(served.predictor, inputs, predictions)
    if served.kind == "classes":
        return [
            _with_cut(
                {"label": [labels[place] for place in np.flatnonzero(chosen)], "scores": _named(labels, row)}, short
            )
            for chosen, row, short in zip(predictions.values, predictions.scores, cut.tolist(), strict=True)
        ]
    found = [_with_cut(without_prefix(row), short) for row, short in zip(rows, cut.tolist(), strict=True)]
    if served.kind == "class" and predictions.scores.ndim > 1:
        found = [row | {"scores": _named(labels, each)} for row, each in zip(found, predictions.scores, strict=True)]
    return found


def without_prefix(row: Row) -> dict[str, Any]:
    """A row of `predict` under the names of the service."""
    return {name.removeprefix(_PREFIX): value for name, value in row.items()}


def _named(labels: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    return {label: round(score, 6) for label, score in zip(labels, scores.tolist(), strict=True)}


def _with_cut(row: dict[str, Any], cut: bool) -> dict[str, Any]:
    return row | {"cut": True} if cut else row
