"""One class for an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from chainrule.core.recipe import Section, Spec
from chainrule.core.task import FieldSpec, Objective, Task
from chainrule.metrics import classification
from chainrule.tasks.augmentation import Augmentation, Augmented
from chainrule.tasks.objectives import CLASS_LOSSES, class_objective
from chainrule.tasks.pictures import encode
from chainrule.tasks.reading import decode_classes, decode_scores, from_logits


class Options(Section):
    """`augmentation`: how images are changed each time they are seen in training; null: not at all."""

    augmentation: Augmentation | None = Field(default_factory=Augmentation)


def _suited(options: Options) -> Task:
    augmentation = options.augmentation
    if augmentation is None:
        return TASK

    def objective(loss: Spec, targets: Any) -> Objective:
        return Augmented(class_objective(loss, targets), augmentation)

    return replace(TASK, objective=objective)


TASK = Task(
    name="image-classification",
    summary="one class for an image",
    fields=(
        FieldSpec("image", "image", ("image", "img", "file", "file_name", "filename", "path", "image_path", "picture")),
        FieldSpec("label", "class", ("label", "class", "category", "target", "y", "fine_label")),
    ),
    default_model="convnet",
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
    head="image-classifier",
    options=Options,
    suited=_suited,
)
