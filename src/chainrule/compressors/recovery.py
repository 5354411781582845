"""A training that is part of making a model smaller: of what is left of it, beside its place, so that it can go on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainrule.compressors.base import Given
from chainrule.compressors.students import recovery_recipe
from chainrule.core.artifact import Artifact
from chainrule.core.recipe import Recipe, Section, Spec
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.models.save import save_model
from chainrule.system.files import read_json, write_json
from chainrule.tasks.objectives import LogitsObjective
from chainrule.training.distillation import KINDS, WORDS
from chainrule.training.run import resume_run, train_recipe

ASKED = "asked.json"


def begin(predictor: Predictor, options: Section, given: Given) -> None:
    """Go on with what the same command has left behind; what another has left is removed."""
    asked = {
        "parent": predictor.artifact.manifest.weights_sha256,
        "options": options.model_dump(mode="json"),
        "source": str(given.source) if isinstance(given.source, str | Path) else None,
    }
    file = given.place / ASKED
    if file.is_file() and read_json(file) == asked:
        given.display.say(f"Going on with what was begun in {given.place}.")
        return
    shutil.rmtree(given.place, ignore_errors=True)
    given.place.mkdir(parents=True)
    write_json(file, asked)


def trained_again(recipe: Recipe, given: Given, told: str) -> Predictor:
    """What comes of the training, in float32; one that was begun goes on.

    Args:
        told: what is said when it begins.
    """
    run, began, source = given.place / "run", time.perf_counter(), given.source
    if (run / "resolved.yaml").is_file():
        resume_run(run, None if isinstance(source, str | Path) else source, given.display, began)
    else:
        given.display.say(told)
        train_recipe(recipe, source, run, given.display, began)
    return load_predictor(Artifact.read(run), device="cpu", precision="float32")


def recipe_of(
    predictor: Predictor, given: Given, start: Path, epochs: float | None, settings: Mapping[str, Any]
) -> Recipe:
    """How what is left is trained: with the model before as teacher, where its task has a few logits a row.

    Args:
        start: the folder of what is left.
        epochs: None for as many as the model itself was trained for.
        settings: keys of the recipe.
    """
    kind, train = predictor.task.target.kind, given.train
    taught = False
    if train is not None and kind in KINDS and (train.sequences is None or kind == WORDS):
        taught = isinstance(predictor.task.objective(loss_of(predictor), train.targets), LogitsObjective)
    return recovery_recipe(predictor, start, given.source, epochs, taught=taught).replace(settings)


def loss_of(predictor: Predictor) -> Spec:
    """The loss that a model was trained with."""
    return Spec.model_validate(predictor.artifact.manifest.recipe.get("loss") or {"name": "default"})


def write_model(predictor: Predictor, model: Any, folder: Path) -> tuple[str, ...]:
    """Write what is left of a model; returns what loads it."""
    manifest, task = predictor.artifact.manifest, predictor.task
    limit = None if task.head == "language-model" or task.sees else manifest.max_length
    return save_model(folder, model, predictor.tokenizer, max_length=limit, base=manifest.base_model)
