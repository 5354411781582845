"""What is trained on what, and the order in which rows come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from chainrule.core.recipe import Recipe
from chainrule.core.task import Objective, Task
from chainrule.data.batch import Batch, collate, epoch_order, micro_batches, pack, packs_of
from chainrule.data.encode import Encoded
from chainrule.inference.predict import Forward
from chainrule.strategies.base import Phase, Strategy
from chainrule.system.processes import ALONE, World
from chainrule.training import projecting
from chainrule.training.averaging import Averaged, take_average
from chainrule.training.loop import MakeOptimizer
from chainrule.training.optimizers import make_optimizer
from chainrule.training.watch import Watch


@dataclass(frozen=True)
class Job:
    """What is trained on what, and how: everything but the recipe's numbers.

    Attributes:
        row_numbers: (n,) of the labelled training rows, which come first, 1-based, in the file they come from.
        watch: what is looked at while it is trained.
        companions: (n, k) the rows whose texts are sequences of each training row, too; None for none.
        world: the processes that share each batch.
    """

    model: Any
    task: Task
    objective: Objective
    strategy: Strategy
    train: Encoded
    validation: Encoded
    row_numbers: np.ndarray
    forward: Forward
    watch: Watch | None = None
    companions: np.ndarray | None = None
    world: World = ALONE


def steps_per_epoch(recipe: Recipe, rows: int) -> int:
    """Optimizer steps to see every row once."""
    return math.ceil(rows / recipe.training.batch_size)


def planned_steps(recipe: Recipe, rows: int) -> int:
    """The length of the run: `training.steps` where it is set, else `training.epochs`."""
    if recipe.training.steps is not None:
        return recipe.training.steps
    if recipe.training.epochs is None:
        raise ValueError("the epochs must be resolved before the steps are counted")
    return max(1, math.ceil(recipe.training.epochs * steps_per_epoch(recipe, rows)))


def planned_batches(recipe: Recipe, lengths: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    """Row positions of each effective batch, epoch after epoch, `steps` in all."""
    made, epoch = 0, 0
    while made < steps:
        for rows in epoch_order(
            lengths,
            recipe.training.batch_size,
            seed=recipe.seed,
            epoch=epoch,
            group_by_length=recipe.training.group_by_length and not recipe.training.packing,
        ):
            if made == steps:
                return
            yield rows
            made += 1
        epoch += 1


def batch_loader(job: Job, recipe: Recipe) -> Callable[[np.ndarray], Batch]:
    """Row positions of the training rows -> Batch on the device."""
    forward = job.forward
    if recipe.training.packing:
        return lambda rows: pack(job.train, rows, device=forward.device)
    how: Any = {"pad_id": forward.pad_id, "left": forward.pad_left, "device": forward.device}
    if job.task.whole_batches:
        at_once = recipe.training.micro_batch_tokens
        return lambda rows: replace(collate(job.train, rows, **how), at_once=at_once)
    return lambda rows: collate(job.train, rows, **how)


def piece_maker(job: Job, recipe: Recipe) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The rows of an effective batch -> those of its micro-batches."""
    tokens = None if job.task.whole_batches else recipe.training.micro_batch_tokens
    split = packs_of if recipe.training.packing else micro_batches
    return lambda rows: [rows] if tokens is None else split(rows, job.train.lengths, tokens)


def own_pieces(job: Job, recipe: Recipe) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The rows of an effective batch -> the micro-batches of this process's share of them; none of an empty share."""
    split = piece_maker(job, recipe)

    def pieces(rows: np.ndarray) -> list[np.ndarray]:
        own = job.world.share(rows)
        return split(own) if len(own) else []

    return pieces


def padded_tokens(job: Job, recipe: Recipe) -> Callable[[np.ndarray], int]:
    """The rows of an effective batch -> the tokens that the model works through for them."""
    lengths = job.train.lengths
    if recipe.training.packing:
        return lambda rows: int(lengths[rows].sum())
    return lambda rows: int(lengths[rows].max()) * len(rows)


def forward_for(job: Job, recipe: Recipe) -> Forward:
    """The model in the number format of a recipe."""
    chosen = job.forward
    return Forward(chosen.model, chosen.pad_id, chosen.pad_left, chosen.device, recipe.training.precision)


def optimizer_maker(job: Job, recipe: Recipe) -> MakeOptimizer:
    """Parameter groups -> the optimizer of a recipe, with the average of the weights around it that it asks for."""
    averaging = recipe.training.averaging
    if averaging is None:
        return partial(make_optimizer, recipe.optimizer)
    share = take_average(averaging)(planned_steps(recipe, len(job.train)))
    return lambda groups: Averaged(make_optimizer(recipe.optimizer, groups), share)


def trained_names(job: Job, recipe: Recipe, steps: int) -> set[str]:
    """The parameters that any phase trains."""
    return set().union(*(phase.names for phase in job.strategy.phases(job.model, recipe.optimizer, steps)))


def trained_count(job: Job, recipe: Recipe, steps: int) -> int:
    """How many numbers of the model any phase trains; what is left behind at the end does not count."""
    names = trained_names(job, recipe, steps).difference(projecting.NAMES)
    return sum(parameter.numel() for name, parameter in job.model.named_parameters() if name in names)


def largest_phase(job: Job, recipe: Recipe, steps: int) -> Phase:
    """The phase that trains the most numbers: what a step costs at most."""
    sizes = {name: parameter.numel() for name, parameter in job.model.named_parameters()}
    phases = job.strategy.phases(job.model, recipe.optimizer, steps)
    return max(phases, key=lambda phase: sum(sizes[name] for name in phase.names))
