"""A recipe completed by the shelves and by rows that are ready: all options, the usual rate, epochs, the length."""

from __future__ import annotations

from typing import Any

from chainrule.core.recipe import Recipe
from chainrule.core.task import Task
from chainrule.models import scratch
from chainrule.models.crf import CRF, with_chain
from chainrule.models.load import width_of
from chainrule.strategies import make_strategy
from chainrule.strategies.base import usual_rate
from chainrule.tasks.objectives import take_loss
from chainrule.tasks.prepare import Prepared
from chainrule.tasks.suited import settled
from chainrule.training.averaging import take_average
from chainrule.training.optimizers import learning_rate, take_optimizer
from chainrule.training.regularisers import take_regularisers
from chainrule.training.schedules import take_schedule

EPOCHS = 3  # of a pretrained model


def with_parts(recipe: Recipe, task: Task) -> Recipe:
    """With every part that the training is made of found on its shelf, and all its options written out.

    Raises:
        RecipeError: there is no such part, or it has no such options.
    """
    loss, training = take_loss(task.losses, recipe.loss), recipe.training
    if CRF in task.losses:
        recipe = with_chain(recipe, loss.name)
    changes: dict[str, Any] = {
        "loss": {"name": loss.name, "options": loss.written_out},
        "task.options": settled(task, recipe.task.options, recipe.model.name).model_dump(mode="json"),
        "optimizer.options": take_optimizer(recipe.optimizer).written_out,
        "schedule.options": take_schedule(recipe.schedule).written_out,
        "regularisers": {part.name: part.written_out for part in take_regularisers(recipe.regularisers)},
        "training.early_stopping_metric": task.ranking_metric(training.early_stopping_metric),
    }
    if training.averaging is not None:
        changes["training.averaging.options"] = take_average(training.averaging).written_out
    return recipe.replace(changes)


def with_known(recipe: Recipe, prepared: Prepared) -> Recipe:
    """The recipe with what rows that are ready, and the shelves, say of what it leaves open."""
    made = scratch.SCRATCH.get(recipe.model.name)
    known = {
        "model.max_length": prepared.max_length,
        "model.options": prepared.model_options,
        "optimizer.learning_rate": rate_of(recipe),
        "training.epochs": recipe.training.epochs or (EPOCHS if made is None else made.epochs),
    }
    return recipe.replace(known)


def rate_of(recipe: Recipe) -> float:
    """The learning rate of a recipe, else what suits its model, strategy and optimizer."""
    made = scratch.SCRATCH.get(recipe.model.name)
    if made is not None:
        return learning_rate(recipe.optimizer, made.learning_rate)
    return learning_rate(recipe.optimizer, usual_rate(make_strategy(recipe.strategy), width_of(recipe.model.name)))
