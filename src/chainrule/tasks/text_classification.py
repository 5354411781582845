"""One class for a text or a pair of texts."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax

from chainrule.core.recipe import Spec
from chainrule.core.task import FieldSpec, Objective, Predictions, Task
from chainrule.data.encode import encode
from chainrule.metrics import classification
from chainrule.tasks.fields import TEXT_FIELDS
from chainrule.tasks.objectives import cross_entropy
from chainrule.tasks.reading import from_logits


def _decode(logits: np.ndarray, targets: np.ndarray | None) -> Predictions:
    logits = logits.astype(np.float64)
    values = logits.argmax(-1)
    scores = softmax(logits, axis=-1)[np.arange(len(values)), values]
    losses = None
    if targets is not None:
        losses = logsumexp(logits, axis=-1) - logits[np.arange(len(targets)), targets]
    return Predictions(values, scores, losses)


def _objective(loss: Spec, targets: np.ndarray) -> Objective:
    return cross_entropy(loss, targets, int(targets.max()) + 1)


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
    detail=classification.detail,
    encode=encode,
    read=from_logits(_decode),
    objective=_objective,
)
