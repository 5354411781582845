"""Which student learns from a fine-tuned teacher, and by which recipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.compressors.base import refused
from chainrule.core.artifact import MANIFEST, Artifact, Run, Step
from chainrule.core.recipe import Recipe, parse_recipe
from chainrule.core.task import LOWER_IS_BETTER
from chainrule.errors import ModelError, Problem, Where
from chainrule.inference.predict import Predictor
from chainrule.models import lstm
from chainrule.models.adapters import has_adapters
from chainrule.models.inspect import layer_stack
from chainrule.models.lstm import LSTMTrunk
from chainrule.models.scratch import SCRATCH
from chainrule.system.files import write_text
from chainrule.system.progress import Display, Quiet
from chainrule.tasks import unlabelled
from chainrule.training.distillation import KINDS
from chainrule.training.run import train_recipe

SELF = "self"
TRIAL_STEPS = 60  # of each choice of layers, before one of them is trained
LONGER = 2.0  # times the teacher's epochs: what a teacher says wears out later than labels do
LSTM = lstm.NAME
VARIANTS, PASSES = 8, 27  # copies of a row for an LSTM, and how often it meets a row or a copy: LOG.md, 2026-11-24
MOST_MADE = 200_000  # copies in all
_RESET: dict[str, Any] = {
    "strategy": {"name": "full"},
    "structure": {},
    "regularisers": {},
    "choice": None,
    "model.options": {},
    "optimizer.learning_rate": None,
    "distillation.hidden": 0.0,
    "distillation.attention": 0.0,
    "distillation.relation": 0.0,
    "distillation.sentences": 0.0,
    "distillation.layers": None,
    "distillation.relation_heads": None,
    "distillation.unlabelled": None,
    "distillation.variants": 0,
    "training.epochs": None,
    "training.steps": None,
    "training.minutes": None,
    "training.folds": None,
    "training.precision": "auto",
    "training.threads": None,
    "training.micro_batch_tokens": None,
    "training.deterministic": None,
}


def student_recipes(teacher: Predictor, student: str, source: str, settings: Mapping[str, Any]) -> list[Recipe]:
    """How a student is trained; several recipes where the layers that stay are still to be chosen.

    Args:
        student: "self:3" for so many layers of the teacher itself (its base model's name stands for "self"), "lstm", or
            the name or folder of another model.
        source: the data.
        settings: keys of the recipe; without epochs twice the teacher's, or what suits a model without pretrained
            weights.

    Raises:
        ModelError: the teacher cannot teach, or has not so many layers.
    """
    artifact = teacher.artifact
    if teacher.task.target.kind not in KINDS:
        reason = f"one for {teacher.task.name}, which says more of a row than a few logits"
        raise refused(teacher, reason, f"Students learn {', '.join(KINDS)} targets.")
    name, _, count = student.partition(":")
    own = name in (SELF, artifact.manifest.base_model) and bool(count)
    known = artifact.manifest.recipe
    planned = known.get("training", {}).get("epochs") or 1.0
    longer = None if name in SCRATCH else LONGER * planned
    changes = _RESET | {
        "data.source": source,
        "model.name": str(artifact.path) if own else student,
        "model.max_length": artifact.manifest.max_length,
        "data.fields": artifact.manifest.fields,
        "distillation.teachers": [str(artifact.path)],
        "training.epochs": longer,
    }
    if name == LSTM and not own:
        changes |= _of_lstm(teacher, settings)
    recipe = parse_recipe({**known, **_nested(changes, known)}).replace(settings)
    if not own:
        return [recipe]
    return [recipe.replace({"structure.keep_layers": list(layers)}) for layers in _layers(teacher, artifact, count)]


def _of_lstm(teacher: Predictor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """It reads the teacher's tokens, and asks it of changed copies of the rows, too, where a row has one target."""
    artifact, model = teacher.artifact, teacher.forward.model
    found: dict[str, Any] = {}
    words_of_its_own = settings.keys() & {"model.options", "model.options.vectors", "model.options.vocabulary"}
    torch_runs_it = artifact.manifest.runtime == "torch" and not teacher.task.sees
    if not words_of_its_own and torch_runs_it and not isinstance(model.base_model, LSTMTrunk):
        place = artifact.manifest.base_model if has_adapters(model) else str(artifact.path)
        found["model.options"] = {"pieces": place}
    if teacher.task.target.kind in unlabelled.KINDS:
        rows = int(artifact.manifest.data.get("rows", {}).get("train", 0))
        variants = min(VARIANTS, MOST_MADE // max(rows, 1))
        passes = PASSES / (1 + variants)
        found |= {"distillation.variants": variants, "training.epochs": passes if variants else None}
    return found


def recovery_recipe(teacher: Predictor, start: Path, source: Any, epochs: float | None, *, taught: bool) -> Recipe:
    """How what is left of a model is trained again.

    Args:
        start: the folder of what is left.
        source: the data, or an object that holds the rows.
        epochs: None for as many as the model itself was trained for.
        taught: whether it learns from the model before, too.
    """
    artifact = teacher.artifact
    known = artifact.manifest.recipe
    changes = _RESET | {
        "data.source": str(source) if isinstance(source, str | Path) else None,
        "model.name": str(start),
        "model.max_length": artifact.manifest.max_length,
        "data.fields": artifact.manifest.fields,
        "distillation.teachers": [str(artifact.path)] if taught else [],
        "training.epochs": epochs or known.get("training", {}).get("epochs") or 1.0,
    }
    return parse_recipe({**known, **_nested(changes, known)})


def train_student(
    teacher: Predictor, student: str, source: str, out: Path, settings: Mapping[str, Any], display: Display
) -> Run:
    """Train a student; where layers that stay are to be chosen, after short trainings.

    Args:
        student, source, settings: as in `student_recipes`.
        out: the run folder to make.
    """
    began = time.perf_counter()
    recipes = student_recipes(teacher, student, source, settings)
    trials = home_of(out)
    try:
        scores: list[float] = []
        for recipe in recipes if len(recipes) > 1 else ():
            run = train_recipe(trial_of(recipe), source, trials / str(len(scores)), Quiet(), time.perf_counter())
            scores.append(run.summary["metrics"][run.artifact.manifest.primary_metric])
            display.say(f"Layers {list(recipe.structure.keep_layers or ())}: {scores[-1]:.4f} after a short training.")
    finally:
        shutil.rmtree(trials, ignore_errors=True)
    best = min if teacher.task.primary_metric in LOWER_IS_BETTER else max
    chosen = recipes[scores.index(best(scores))] if scores else recipes[0]
    return train_recipe(chosen, source, out, display, began)


def with_step(run: Run, parent: Artifact, done: Step) -> None:
    """Write into the manifest of a student what it was made of, and what was measured."""
    manifest = run.artifact.manifest
    lineage = {"lineage": (*parent.manifest.lineage, done), "parent": parent.manifest.weights_sha256}
    write_text(run.artifact.path / MANIFEST, manifest.model_copy(update=lineage).model_dump_json(indent=2) + "\n")


def trial_of(recipe: Recipe, steps: int = TRIAL_STEPS) -> Recipe:
    """A short training by which choices of what stays are told apart."""
    return recipe.replace({"training.steps": steps, "training.evaluate_every_steps": steps})


def choices_of_layers(there: int, wanted: int) -> list[tuple[int, ...]]:
    """Choices that have been good for others: spread from the bottom, to the top, over both, and the lowest.

    Sanh et al. (2019), DistilBERT, section 3; Sajjad et al. (2023), On the Effect of Dropping Layers.
    """
    step = there // wanted
    spread = tuple(int(layer) for layer in np.round(np.linspace(0, there - 1, wanted)))
    bottom = tuple(range(0, step * wanted, step))
    top = tuple(layer + there - 1 - bottom[-1] for layer in bottom)
    return list(dict.fromkeys([spread, bottom, top, tuple(range(wanted))]))


def _layers(teacher: Predictor, artifact: Artifact, count: str) -> Sequence[tuple[int, ...]]:
    model = teacher.forward.model
    if has_adapters(model) or artifact.manifest.runtime != "torch":
        raise refused(teacher, "adapters, or a graph", "Merge it first: chainrule export --to hf.")
    there = len(layer_stack(model))
    wanted = int(count) if count.isdecimal() else 0
    if not 1 <= wanted < there:
        where, todo = Where(field="--distill"), f"For example --distill {SELF}:{max(1, there // 2)}"
        problem = Problem(f"from 1 to {there - 1} of the teacher's {there} layers", repr(count)[:40], todo, where)
        raise ModelError("There is no such student.", [problem])
    return choices_of_layers(there, wanted)


def _nested(changes: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Dotted changes on top of the sections that are there."""
    made: dict[str, Any] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if not name:
            made[section] = value
        else:
            made.setdefault(section, dict(known.get(section) or {}))[name] = value
    return made


def home_of(out: Path) -> Path:
    """Where short trainings are made, beside the run; they are removed again."""
    return out.with_name(f".{out.name}.trials")
