"""One class for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import replace

from chainrule.core.task import FieldSpec, Task
from chainrule.data.encode import encode
from chainrule.metrics import classification
from chainrule.tasks.fields import TEXT_FIELDS
from chainrule.tasks.objectives import CLASS_LOSSES, class_objective
from chainrule.tasks.reading import decode_classes, decode_scores, from_logits
from chainrule.tasks.windows import LongTexts, in_windows

_CUT = Task(
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
    read=from_logits(decode_classes),
    read_scores=from_logits(decode_scores),
    losses=CLASS_LOSSES,
    objective=class_objective,
    options=LongTexts,
)
TASK = replace(_CUT, suited=in_windows(_CUT, decode_classes, decode_scores))
