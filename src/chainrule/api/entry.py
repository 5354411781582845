"""What every verb begins with: the environment, and the artifact and the rows that are meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chainrule.core.artifact import Artifact, Run
from chainrule.core.recipe import read_recipe
from chainrule.errors import Problem, RecipeError
from chainrule.system.telemetry import turn_off_telemetry
from chainrule.system.threads import wait_briefly

Rows = Any  # a path, a name, a pandas frame, a datasets.Dataset, or a dict of split -> one of these


def set_environment() -> None:
    """What the libraries read when they are loaded, so it must come before their imports."""
    turn_off_telemetry()
    wait_briefly()


def artifact_of(model: str | Path | Run | Artifact) -> Artifact:
    """The artifact itself, of a run, or in a folder.

    Raises:
        ModelError: there is none.
    """
    if isinstance(model, Artifact):
        return model
    return model.artifact if isinstance(model, Run) else Artifact.read(Path(model))


def source_of(artifact: Artifact) -> str:
    """The data that the run of an artifact was trained on.

    Raises:
        RecipeError: the artifact does not lie in a run, or its run was given an object.
    """
    folder = artifact.run_folder
    recipe = read_recipe(folder / "recipe.yaml") if folder else None
    if recipe is None or recipe.data.source is None:
        problem = Problem(expected="labelled data", got="nothing", todo="Name it: chainrule evaluate MODEL DATA")
        raise RecipeError("This artifact does not lie in its run, so the data must be named.", [problem])
    return recipe.data.source


def name_of(source: Any) -> str:
    """What rows are called in a recipe and in messages."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def default_model(task: str) -> str:
    """The model of a task where none is named."""
    from chainrule.tasks import find_task

    return find_task(task).default_model
