"""The loop within the memory there is: where it runs short, the loop is begun anew with smaller pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from chainrule.core.recipe import Recipe
from chainrule.errors import Problem, ShortageError
from chainrule.strategies.base import Phase
from chainrule.system.memory import is_shortage, return_freed
from chainrule.system.progress import Display
from chainrule.training.checkpoint import Standing
from chainrule.training.data_parallel import adding_up
from chainrule.training.decisions import take
from chainrule.training.events import Sink
from chainrule.training.job import (
    Job,
    batch_loader,
    forward_for,
    optimizer_maker,
    own_pieces,
    planned_batches,
    planned_steps,
)
from chainrule.training.loop import Step, Stepping, own_sums, training_steps
from chainrule.training.profile import Profile, profiled
from chainrule.training.schedules import Factor, make_schedule
from chainrule.training.validation import waits
from chainrule.training.watch import watched


def steps_in_memory(
    job: Job, recipe: Recipe, standing: Standing, record: Sink, display: Display, schedule: Factor | None = None
) -> Iterator[Step]:
    """The loop, looked at where the recipe asks for it; where memory runs short it goes on with smaller pieces.

    Args:
        schedule: in place of the recipe's.
    """
    schedule = schedule or make_schedule(recipe.schedule, planned_steps(recipe, len(job.train)))
    while True:
        shrink_again(standing, record)
        tokens = standing.micro_batch_tokens or recipe.training.micro_batch_tokens
        now = recipe.replace({"training.micro_batch_tokens": tokens})
        steps = training_steps(*_loop_parts(job, now, standing, schedule))
        try:
            for step in _looked_at(steps, job, recipe, standing, record, display):
                yield step
                if shrink_again(standing, record):
                    break
            else:
                return
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            if standing.progress.updating or (tokens or math.inf) <= int(job.train.lengths.min()):
                raise _no_memory(standing.progress.step) from None
            return_freed()
            halve(job, recipe, standing, record, display)


def shrink_again(standing: Standing, record: Sink) -> bool:
    """Go on with the smaller micro-batches that memory asked for at this step before; whether it did."""
    decision = take(standing.pending, "memory", standing.progress.step)
    if decision is None:
        return False
    _shrink(standing, decision["micro_batch_tokens"], record)
    return True


def _shrink(standing: Standing, tokens: int, record: Sink) -> None:
    standing.micro_batch_tokens = tokens
    record({"event": "memory", "step": standing.progress.step, "micro_batch_tokens": tokens})


def _no_memory(made: int) -> ShortageError:
    problem = Problem(
        expected="memory for a single row and the optimizer's state",
        got=f"none left in step {made + 1:,}",
        todo="Close other programs and go on with --resume, or train anew with a smaller model.max_length.",
    )
    return ShortageError("There is not enough memory for this training.", [problem])


def halve(job: Job, recipe: Recipe, standing: Standing, record: Sink, display: Display) -> None:
    """Smaller micro-batches from the next step on; the effective batch stays."""
    whole = recipe.training.batch_size * int(job.train.lengths.max())
    tokens = max(1, (standing.micro_batch_tokens or recipe.training.micro_batch_tokens or whole) // 2)
    _shrink(standing, tokens, record)
    display.say(f"warning: memory ran short; from here on at most {tokens:,} tokens are worked through at once.")


def _looked_at(
    steps: Iterator[Step], job: Job, recipe: Recipe, standing: Standing, record: Sink, display: Display
) -> Iterator[Step]:
    """The same steps, looked at as the recipe asks for it."""

    def report(seen: Profile) -> None:
        record(seen.as_event())
        for line in seen.lines():
            display.say(line)

    if job.watch is not None:
        steps = watched(steps, job.watch, standing.progress, record)
    return profiled(steps, recipe.training.precision, report) if recipe.training.profile else steps


def _loop_parts(job: Job, recipe: Recipe, standing: Standing, schedule: Factor) -> tuple[Any, ...]:
    total, least = planned_steps(recipe, len(job.train)), recipe.training.min_delta
    stepping = Stepping(
        pieces=own_pieces(job, recipe),
        load=batch_loader(job, recipe),
        autocast=forward_for(job, recipe).autocast,
        factor=lambda step: schedule(step, waits(standing.best.ranks, least)) * standing.rate_factor,
        max_gradient_norm=recipe.optimizer.max_gradient_norm,
        seed=recipe.seed,
        rank=job.world.rank,
        add_up=own_sums if job.world.alone else adding_up(job.world),
    )
    phases: list[Phase] = job.strategy.phases(job.model, recipe.optimizer, total)
    batches = planned_batches(recipe, job.train.lengths, total)
    return job.model, job.objective, batches, phases, optimizer_maker(job, recipe), stepping, standing.progress
