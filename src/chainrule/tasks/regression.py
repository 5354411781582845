"""A number for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chainrule.core.task import FieldSpec, Predictions, Task
from chainrule.data.encode import encode
from chainrule.metrics import regression
from chainrule.models.heads import scale_output
from chainrule.tasks.fields import TEXT_FIELDS
from chainrule.tasks.objectives import NUMBER_LOSSES, number_objective
from chainrule.tasks.reading import from_logits
from chainrule.tasks.windows import LongTexts, in_windows


def _decode(logits: np.ndarray, targets: np.ndarray | None) -> Predictions:
    values = logits.astype(np.float64)[:, 0]
    losses = None if targets is None else np.square(values - targets)
    return Predictions(values, np.ones_like(values), losses)


_CUT = Task(
    name="regression",
    summary="a number for a text or a pair of texts",
    fields=(
        *TEXT_FIELDS,
        FieldSpec("score", "number", ("score", "rating", "stars", "similarity", "label", "target", "y")),
    ),
    default_model="minilm",
    primary_metric="spearman",
    problem_type="regression",
    measure=regression.measure,
    metrics=("spearman", "pearson", "rmse", "loss"),
    detail=regression.detail,
    encode=encode,
    read=from_logits(_decode),
    losses=NUMBER_LOSSES,
    objective=number_objective,
    prepare_head=lambda model, targets, options: scale_output(model, targets),
    best_by_loss=True,
    options=LongTexts,
)
TASK = replace(_CUT, suited=in_windows(_CUT, _decode))
