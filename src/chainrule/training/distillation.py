"""A student learns from what fine-tuned teachers say of the training rows, beside the labels.

Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network, section 2: the student's probabilities at
a temperature are drawn to the teachers', and since gradients of softened targets are smaller by its square, the loss is
multiplied by that. Teachers read rows with tokenizers of their own, so they may be of any architecture; what they say
is asked once, before step one. Of words they are asked batch by batch, and must read the student's tokens; so must one
whose inner states are learned, too (`state_teacher`), and one that teaches replies (`taught_replies`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from chainrule.core.artifact import Artifact
from chainrule.core.recipe import Distillation, Recipe
from chainrule.core.task import Objective, Predictions, Task
from chainrule.data.batch import IGNORED, Batch
from chainrule.data.encode import Encoded, joined
from chainrule.errors import Problem, RecipeError, Where
from chainrule.inference.predict import Predictor, load_predictor, predict_encoded
from chainrule.system.progress import Display
from chainrule.tasks.language_model import NextTokenObjective
from chainrule.tasks.objectives import LogitsObjective, backward, logits_of, with_target
from chainrule.tasks.prepare import Prepared
from chainrule.training.states import StateLosses, States
from chainrule.training.taught_replies import TaughtReplies, listen

KINDS = ("class", "classes", "number", "spans", "reply")  # of targets
WORDS, REPLY = "spans", "reply"


@dataclass(frozen=True)
class Distilled:
    """(1 − weight) of the task's own loss, and weight of how far the student is from the teachers.

    Attributes:
        inner: the task's objective.
        kind: of the task's target.
        teachers: that are run on every batch; what they say is in the batch where it has `references`: (b, labels)
            probabilities at the temperature, or numbers.
        states: what is learned of the states of the one teacher, beside; None for nothing.
    """

    inner: LogitsObjective
    kind: str
    options: Distillation
    teachers: tuple[Predictor, ...] = ()
    states: StateLosses | None = None

    def accumulate(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        """Gradients of the sum over rows, or over words."""
        if batch.targets is None:
            raise ValueError("a student's rows have targets")
        if self.teachers:
            _require_tokens(batch)
        logits, own = self._read(model, batch.inputs)
        logits, targets = with_target(logits, batch.targets)
        said, shown = self._asked(batch, targets)
        wanted = batch.references if said is None else said
        if wanted is None:
            raise ValueError("a student's rows have what the teachers say")
        weight = self.options.weight
        losses = (1 - weight) * self._of_labels(logits, targets) if weight < 1 else logits.new_zeros(len(targets))
        if self.kind == "number":
            losses = losses + weight * self.inner.divergence(logits, wanted)
        else:
            losses = losses + weight * distance(logits, wanted, self.kind, self.options.temperature)
        total = losses.sum()
        if self.states is not None and own is not None and shown is not None:
            apart = self.states.of_rows(own, shown, _mask_of(batch.inputs))
            total = total + (apart * _counts_of(batch.targets, self.kind)).sum()
        return backward(total), len(targets)

    def _of_labels(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(b,) the task's own loss; 0 of rows without labels."""
        known = are_known(targets)
        if known.all():
            return self.inner.row_loss(logits, targets)
        losses = logits.new_zeros(len(targets))
        if known.any():
            losses = losses.index_put((known,), self.inner.row_loss(logits[known], targets[known]).to(losses))
        return losses

    def _read(self, model: Any, inputs: Any, *, teacher: bool = False) -> tuple[torch.Tensor, States | None]:
        if self.states is None:
            return logits_of(model, inputs), None
        return self.states.read(model, inputs, teacher=teacher)

    def _asked(self, batch: Batch, targets: torch.Tensor) -> tuple[torch.Tensor | None, States | None]:
        """What the teachers say now, where the batch does not have it, and the states of the last of them."""
        said: list[torch.Tensor] = []
        states = None
        for teacher in self.teachers:
            with torch.no_grad(), teacher.forward.autocast():
                logits, states = self._read(teacher.forward.model, batch.inputs, teacher=True)
            if batch.references is None:
                kept = with_target(logits, batch.targets)[0]  # type: ignore[arg-type]
                said.append(softened(kept, self.kind, self.options.temperature))
        return together(said, targets, self.kind, self.options.trust) if said else None, states


def _require_tokens(batch: Batch) -> None:
    if "input_ids" not in batch.inputs:
        got = "states of frozen layers in place of them (training.trunk_cache)"
        raise _refused("the tokens of each batch, for the teachers to read", got, "training.trunk_cache")


def _mask_of(inputs: Any) -> torch.Tensor:
    """(s, t), 1 at tokens and 0 at padding."""
    mask: torch.Tensor = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    return mask


def _counts_of(targets: torch.Tensor, kind: str) -> torch.Tensor:
    """(s,) how often each sequence counts: as often as it has words, else once."""
    return (targets != IGNORED).sum(1) if kind == WORDS else torch.ones(len(targets), device=targets.device)


def distance(logits: torch.Tensor, wanted: torch.Tensor, kind: str, temperature: float) -> torch.Tensor:
    """(b,) how far a student is from its teachers.

    Args:
        logits: (b, labels) of the student.
        wanted: the teachers' probabilities at the temperature, (b, labels).
        kind: of the target: of a class the Kullback–Leibler divergence, of several labels the mean of theirs.
    """
    if kind == "classes":
        crossed = functional.binary_cross_entropy_with_logits(logits / temperature, wanted, reduction="none")
        own = functional.binary_cross_entropy(wanted, wanted, reduction="none")
        return temperature**2 * (crossed - own).mean(-1)
    said = functional.log_softmax(logits / temperature, -1)
    return temperature**2 * functional.kl_div(said, wanted, reduction="none").sum(-1)


def are_known(targets: torch.Tensor) -> torch.Tensor:
    """(b,) bool, the rows that have a label."""
    known = ~targets.isnan() if targets.is_floating_point() else targets != IGNORED
    return known if known.dim() == 1 else known.all(-1)


def softened(logits: torch.Tensor, kind: str, temperature: float) -> torch.Tensor:
    """A teacher's logits (b, labels) as what a student is to say; of numbers the numbers."""
    if kind == "number":
        return logits
    return torch.sigmoid(logits / temperature) if kind == "classes" else torch.softmax(logits / temperature, -1)


def together(said: Sequence[torch.Tensor], targets: torch.Tensor, kind: str, trust: str) -> torch.Tensor:
    """The mean of what several teachers say (b, labels), weighted row by row by how likely each finds the label.

    Of numbers, of rows without labels, and with `trust` "equal", all weigh the same.
    """
    stacked = torch.stack(list(said))
    if trust == "equal" or kind == "number" or len(said) == 1:
        return stacked.mean(0)
    if kind == "classes":
        likely = torch.where(targets > 0.5, stacked, 1 - stacked).log().mean(-1).exp()
    else:
        likely = stacked[:, torch.arange(len(targets), device=targets.device), targets.clamp_min(0)]
    likely = torch.where(are_known(targets), likely, 1.0)
    shares = likely / likely.sum(0).clamp_min(1e-12)
    return (shares[..., None] * stacked).sum(0)


def distilled(
    recipe: Recipe, task: Task, prepared: Prepared, train: Encoded, objective: Objective, display: Display
) -> tuple[Encoded, Objective]:
    """The training rows and the objective with what the teachers of a recipe say; as they are without teachers.

    Raises:
        RecipeError: the teachers do not suit the task, its labels or its rows, or the task has no such logits.
        ModelError: a teacher cannot be loaded.
    """
    options = recipe.distillation
    if not options.teachers:
        if options.reads_states or options.unlabelled is not None or options.variants:
            what = "there are rows without labels" if options.unlabelled else "copies of rows have no labels"
            what = "their states are to be learned" if options.reads_states else what
            raise _refused(f"teachers, as {what}", "none", "distillation.teachers")
        return train, objective
    kind = task.target.kind
    if recipe.training.folds is not None:
        raise _refused("training without folds, as teachers know the rows held out", "training.folds", "distillation")
    if kind == REPLY and isinstance(objective, NextTokenObjective):
        return train, _taught_replies(options, task, prepared, train, objective, display)
    windowed = train.sequences is not None and kind != WORDS
    if kind not in KINDS or not isinstance(objective, LogitsObjective) or windowed:
        got = f"{task.name} in windows" if windowed else f"{task.name} with this loss"
        raise _refused("a task whose rows or words have a few logits each", got, "distillation")
    teachers = tuple(_teacher(path, task, prepared) for path in options.teachers)
    if kind == WORDS:
        _require_same_tokens(teachers, prepared)
        return train, Distilled(objective, kind, options, teachers)
    inputs, targets = prepared.dataset.splits["train"].inputs, np.asarray(train.targets)
    labelled = replace(train, references=_heard(teachers, inputs, targets, kind, options, display))
    made = Distilled(objective, kind, options, teachers if options.reads_states else ())
    further = prepared.unlabelled
    if further is None:
        return labelled, made
    rows = further.hollow(targets)
    said = _heard(teachers, further.inputs, np.asarray(rows.targets), kind, options, display)
    return joined([labelled, replace(rows, references=said)]), made


def _heard(
    teachers: Sequence[Predictor], inputs: Any, targets: np.ndarray, kind: str, options: Distillation, display: Display
) -> np.ndarray:
    """What all teachers say together of some rows: (n, labels) float32."""
    said = [_said(teacher, inputs, kind, options.temperature, display) for teacher in teachers]
    return together(said, torch.as_tensor(targets), kind, options.trust).numpy().astype(np.float32)


def _taught_replies(
    options: Distillation,
    task: Task,
    prepared: Prepared,
    train: Encoded,
    objective: NextTokenObjective,
    display: Display,
) -> TaughtReplies:
    """The objective of a student that writes."""
    if len(options.teachers) > 1 or options.reads_states:
        got = "states, too" if options.reads_states else f"{len(options.teachers)} teachers"
        raise _refused("one teacher, and what it says alone, for a model that writes", got, "distillation")
    teacher = _teacher(options.teachers[0], task, prepared)
    _require_same_tokens((teacher,), prepared)
    if teacher.tokenizer.chat_template != prepared.tokenizer.chat_template:
        got = f"another template: {teacher.artifact.path}"
        raise _refused("a teacher with the student's chat template", got, "distillation.teachers")
    return TaughtReplies(objective, options, listen(teacher, train, objective, options.temperature, display))


def _teacher(path: str, task: Task, prepared: Prepared) -> Predictor:
    artifact = Artifact.read(Path(path))
    manifest, dataset = artifact.manifest, prepared.dataset
    if manifest.task != task.name:
        raise _refused(f"a teacher for {task.name}", f"one for {manifest.task}: {path}", "distillation.teachers")
    if tuple(manifest.labels) != tuple(dataset.labels):
        got = f"{', '.join(manifest.labels[:8]) or 'none'}: {path}"
        raise _refused(f"a teacher of the labels {', '.join(dataset.labels[:8])}", got, "distillation.teachers")
    if set(manifest.inputs) != set(dataset.splits["train"].inputs):
        wanted = " and ".join(dataset.splits["train"].inputs)
        got = f"one of {' and '.join(manifest.inputs)}: {path}"
        raise _refused(f"a teacher of {wanted}", got, "distillation.teachers")
    return load_predictor(artifact)


def _require_same_tokens(teachers: Sequence[Predictor], prepared: Prepared) -> None:
    for teacher in teachers:
        if teacher.tokenizer.get_vocab() != prepared.tokenizer.get_vocab():
            got = f"another vocabulary: {teacher.artifact.path}"
            raise _refused("teachers of words and replies that read the student's tokens", got, "distillation.teachers")


def _said(teacher: Predictor, inputs: Any, kind: str, temperature: float, display: Display) -> torch.Tensor:
    """What a teacher says of all training rows, (n, labels), batch by batch in an order of its own rows alone."""

    def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
        logits = logits_of(model, batch.inputs)
        return Predictions(softened(logits, kind, temperature).cpu().numpy(), np.ones(len(logits)))

    encoded = teacher.encode(inputs)
    with display.bar(f"what {teacher.artifact.manifest.base_model} says of the training rows", len(encoded)) as bar:
        return torch.from_numpy(np.asarray(predict_encoded(teacher.forward, encoded, read, bar).values))


def _refused(expected: str, got: str, field: str) -> RecipeError:
    todo = "Choose other teachers, or leave `distillation` out."
    return RecipeError("The student cannot learn like this.", [Problem(expected, got, todo, Where(field=field))])
