"""The cheap baselines of a run, whatever the task: fitted on its training rows, kept in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from chainrule.core.artifact import Manifest
from chainrule.core.report import Finding
from chainrule.core.task import Predictions, Task
from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation.baselines import Baselines, fit_baselines, outputs_of
from chainrule.evaluation.pixels import PixelModel
from chainrule.evaluation.rankers import Rankers
from chainrule.evaluation.sentence_overlap import SentenceOverlap
from chainrule.evaluation.word_tags import WordTags
from chainrule.tasks import find_task

Inputs = Mapping[str, Sequence[str]]


class Fitted(Protocol):
    """Baselines that were fitted."""

    @property
    def best(self) -> str:
        """The baseline that was better on validation."""
        ...

    @property
    def scores(self) -> dict[str, float]:
        """Each baseline's primary metric on validation."""
        ...

    def predict(self, inputs: Inputs) -> dict[str, Predictions]:
        """Each baseline's predictions of rows, by its name."""
        ...

    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the comparison should know of them."""
        ...

    def save(self, folder: Path) -> None:
        """Write them into a folder."""
        ...


def fit(
    task: Task, labels: Sequence[str], train: tuple[Inputs, Any], validation: tuple[Inputs, Any], seed: int
) -> Fitted:
    """Fit the baselines of a task on training rows, and score them on validation.

    Args:
        train, validation: texts by input field, and targets.
    """
    if task.sees:
        return PixelModel.fit(task, len(labels), train, validation, seed)
    if task.target.kind == "relevances":
        return Rankers.fit(task, train, validation, seed)
    if task.target.kind not in ("spans", "answers"):
        return fit_baselines(task, labels, train, validation, seed=seed)
    found = WordTags.fit(labels, *train) if task.target.kind == "spans" else SentenceOverlap.fit(*train)
    if not len(validation[1]):
        return found
    said = found.predict(validation[0])
    scores = {name: task.measure(validation[1], each)[task.primary_metric] for name, each in said.items()}
    return replace(found, scores=scores)


def read_fitted(folder: Path, manifest: Manifest) -> Fitted:
    """The baselines in a run folder.

    Raises:
        ModelError: they are damaged, or not of this model.
    """
    task = find_task(manifest.task)
    if task.sees:
        return PixelModel.load(folder, len(manifest.labels))
    kind = task.target.kind
    if kind == "spans":
        tags = WordTags.load(folder)
        if tags.labels != manifest.labels:
            raise _foreign(folder, f"entities of {', '.join(manifest.labels)}", ", ".join(tags.labels) or "no labels")
        return tags
    if kind == "answers":
        return SentenceOverlap.load(folder)
    if kind == "relevances":
        return Rankers.load(folder)
    baselines = Baselines.load(folder)
    outputs = outputs_of(kind, len(manifest.labels))
    found = baselines.kind, baselines.fields, len(baselines.linear.intercepts)
    if found != (kind, manifest.inputs, outputs):
        got = f"{found[0]} from {', '.join(found[1])} with {found[2]} outputs"
        raise _foreign(folder, f"{kind} from {', '.join(manifest.inputs)} with {outputs} outputs", got)
    return baselines


def _foreign(folder: Path, expected: str, got: str) -> ModelError:
    todo = "Take a copy of the run that is whole, or train again."
    problem = Problem(f"{expected}, as in the manifest", got, todo, Where(str(folder)))
    return ModelError("The baselines are not of this model.", [problem])
