"""One class for a text or a pair of texts."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax

from chainrule.core.task import FieldSpec, Predictions, Task
from chainrule.data.encode import encode
from chainrule.metrics import classification
from chainrule.tasks.fields import TEXT_FIELDS
from chainrule.tasks.objectives import CLASS_LOSSES, class_objective
from chainrule.tasks.reading import from_logits


def _decode(logits: np.ndarray, targets: np.ndarray | None) -> Predictions:
    logits = logits.astype(np.float64)
    values = logits.argmax(-1)
    scores = softmax(logits, axis=-1)[np.arange(len(values)), values]
    losses = None
    if targets is not None:
        losses = logsumexp(logits, axis=-1) - logits[np.arange(len(targets)), targets]
    return Predictions(values, scores, losses)


TASK = Task(
    name="text-classification",
    summary="one class for a text or a pair of texts",
    fields=(
        *TEXT_FIELDS,
        FieldSpec("label", "class", ("label", "class", "category", "sentiment", "intent", "target", "y")),
    ),
    default_model="minilm",
    primary_metric="accuracy",
    problem_type="single_label_classification",
    measure=classification.measure,
    metrics=("accuracy", "macro_f1", "micro_f1", "f1", "mcc", "loss"),
    detail=classification.detail,
    encode=encode,
    read=from_logits(_decode),
    losses=CLASS_LOSSES,
    objective=class_objective,
)
