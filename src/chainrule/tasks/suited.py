"""A task as a recipe's options and its model make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.core.recipe import Recipe, Section, Spec, parse_options
from chainrule.core.task import Task
from chainrule.models.load import is_encoder_decoder
from chainrule.tasks import find_task


def suited(name: str, options: Mapping[str, Any], model: str) -> Task:
    """The task of that name for these options and this model.

    Args:
        model: a name or a folder.

    Raises:
        RecipeError: there is no such task, or it has no such options.
        ModelError: what the model is must be known, and it cannot be found.
    """
    task = find_task(name)
    return task if task.suited is None else task.suited(settled(task, options, model))


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe; raises as `suited`."""
    return suited(recipe.task.name, recipe.task.options, recipe.model.name)


def settled(task: Task, options: Mapping[str, Any], model: str) -> Section:
    """A task's options, with what the model decides; raises as `suited`."""
    found = parse_options(task.options, Spec(name=task.name, options=dict(options)), "task")
    if "form" not in task.options.model_fields or found.model_dump()["form"] is not None:
        return found
    return found.model_copy(update={"form": "encoder-decoder" if is_encoder_decoder(model) else "decoder"})
