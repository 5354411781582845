"""A short training that is thrown away: what the race and the search try their candidates with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from chainrule.core.recipe import Recipe
from chainrule.system.progress import Quiet
from chainrule.tasks.prepare import Prepared
from chainrule.training.checkpoint import Standing
from chainrule.training.job import Job, planned_steps
from chainrule.training.loop import Step
from chainrule.training.measure import OFF
from chainrule.training.resolve import planned_seconds
from chainrule.training.run import plan
from chainrule.training.shortage import steps_in_memory
from chainrule.training.trainer import above_frozen, referring, settle_formats

HELD_OUT = 512  # validation rows that a trial is scored on, at most
FEWEST_STEPS = 20  # a shorter trial tells nothing
SHORT = OFF | {"training.averaging": None}


@dataclass(frozen=True)
class Pace:
    """What a trial costs.

    Attributes:
        load: seconds until step one.
        step: seconds of one step.
    """

    load: float
    step: float


@dataclass(frozen=True)
class Short:
    """A short training: its steps are made one by one as they are asked for."""

    job: Job
    recipe: Recipe
    steps: Iterator[Step]


def pace_of(recipe: Recipe, prepared: Prepared) -> tuple[Pace, str]:
    """What a training of this recipe costs, by a few of its steps; and the number format that it will have.

    Raises:
        UserError: the recipe cannot be trained on this model, or there is not enough memory.
    """
    began = time.perf_counter()
    job, planned = plan(recipe, prepared, Quiet())
    load = time.perf_counter() - began
    steps = planned_steps(planned, len(job.train))
    return Pace(load, planned_seconds(job, planned) / steps), planned.training.precision


def begin_short(recipe: Recipe, prepared: Prepared, steps: int) -> Short:
    """A training of so many steps, ready for the first; the frozen layers' output comes from the cache where it can.

    Raises:
        UserError: the recipe cannot be trained on this model, or there is not enough memory.
    """
    job, recipe = plan(recipe.replace(SHORT | {"training.steps": steps}), prepared, Quiet())
    settle_formats(job, recipe, steps)
    job = referring(job, recipe, Quiet())
    job, _ = above_frozen(job, recipe, steps, Quiet())
    return Short(job, recipe, steps_in_memory(job, recipe, Standing(), _forget, Quiet()))


def _forget(event: dict[str, object]) -> None:
    """The events of a short training are not kept."""
