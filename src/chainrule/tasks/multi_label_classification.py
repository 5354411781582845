"""Any number of labels for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit

from chainrule.core.task import FieldSpec, Predictions, Task
from chainrule.data.encode import encode
from chainrule.metrics import classification
from chainrule.tasks.fields import TEXT_FIELDS
from chainrule.tasks.objectives import LABEL_LOSSES, label_objective
from chainrule.tasks.reading import from_logits
from chainrule.tasks.windows import LongTexts, in_windows


def _decode(logits: np.ndarray, targets: np.ndarray | None) -> Predictions:
    logits = logits.astype(np.float64)
    losses = None
    if targets is not None:
        losses = (np.logaddexp(0.0, logits) - logits * targets).mean(-1)
    return Predictions((logits > 0).astype(np.uint8), expit(logits), losses)


_CUT = Task(
    name="multi-label-classification",
    summary="any number of labels for a text or a pair of texts",
    fields=(*TEXT_FIELDS, FieldSpec("labels", "classes", ("labels", "label", "tags", "categories"))),
    default_model="minilm",
    primary_metric="micro_f1",
    problem_type="multi_label_classification",
    measure=classification.multilabel_measure,
    metrics=("exact_match", "micro_f1", "macro_f1", "f1", "loss"),
    detail=classification.multilabel_detail,
    encode=encode,
    read=from_logits(_decode),
    losses=LABEL_LOSSES,
    objective=label_objective,
    options=LongTexts,
)
TASK = replace(_CUT, suited=in_windows(_CUT, _decode))
