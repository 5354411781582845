"""What a recipe leaves open, decided once before step one: what clocks, probes and free memory say becomes numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.core.recipe import Recipe
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.inspect import count_parameters
from chainrule.system.progress import Display
from chainrule.training import probe
from chainrule.training.job import (
    Job,
    batch_loader,
    forward_for,
    largest_phase,
    optimizer_maker,
    padded_tokens,
    piece_maker,
    planned_batches,
    planned_steps,
    steps_per_epoch,
    trained_count,
)
from chainrule.training.loop import activate
from chainrule.training.memory import AVERAGED_BYTES, free_bytes, rows_that_fit
from chainrule.training.regularisers import reads_embeddings

PROBE_BATCHES = 3
PROBE_TOKENS = 1024  # enough to see the faster number format; a language model in float32 takes a second for them
RESERVE_FOR_THE_REST = 1.15  # validation, saving and baselines take about this much on top of the steps


def resolve(job: Job, recipe: Recipe, display: Display) -> Recipe:
    """Fill in what the recipe leaves open: number format, number of steps, size of micro-batches.

    What a clock or a probe decides is decided here, once, before step one: minutes become steps. Where the strategy has
    several phases, the one that trains the most is tried out.
    """
    changes: dict[str, Any] = {}
    live = recipe.distillation.reads_states  # the teacher reads tokens
    if live or reads_embeddings(recipe.regularisers):  # which the output of frozen layers has left behind
        changes["training.trunk_cache"] = False
    is_open = recipe.training.micro_batch_tokens is None
    if is_open:
        whole = recipe.training.batch_size * int(job.train.lengths.max())
        changes["training.micro_batch_tokens"] = min(job.task.micro_batch_tokens or whole, whole)
    if recipe.training.packing:
        _refuse_packing(job, recipe)
    recipe = recipe.replace(changes)
    planned = planned_steps(recipe, len(job.train))
    trained = trained_count(job, recipe, planned)
    share = f"{trained:,} of {count_parameters(job.model):,} parameters"
    display.say(
        f"Strategy {recipe.strategy.name}: trains {share}, {planned:,} steps of {recipe.training.batch_size} rows."
    )
    phase = largest_phase(job, recipe, planned)
    groups, job = activate(job.model, phase), replace(job, objective=phase.wrap(job.objective))
    precision = _choose_precision(job, recipe, display)
    recipe = recipe.replace({"training.precision": precision, "training.steps": planned})
    if is_open:
        recipe = _within_memory(job, recipe, trained, display)
    minutes = recipe.training.minutes
    if minutes is not None:
        steps = min(planned, _affordable(job, recipe, groups))
        recipe = recipe.replace({"training.steps": steps, "training.minutes": None})
        if steps < planned:
            display.say(f"{minutes:g} minutes are enough for {steps} of {planned} planned steps.")
    return recipe


def _refuse_packing(job: Job, recipe: Recipe) -> None:
    """Make sure that rows side by side do not see each other.

    Raises:
        RecipeError: they would.
    """
    if reads_embeddings(recipe.regularisers):
        expected, todo = "rows apart, as each is moved by itself", "Leave fgm out, or training.packing."
        problem = Problem(expected, "training.packing", todo, Where(field="regularisers.fgm"))
        raise RecipeError("FGM cannot be used on packed rows.", [problem])
    if job.task.packs is not None and job.task.packs(job.model):
        return
    problem = Problem(
        where=Where(field="training.packing"),
        expected="text-generation with a model whose attention follows position_ids, so that rows side by side do not "
        "see each other",
        got=f"{recipe.task.name} with {recipe.model.name}",
        todo="Leave training.packing out.",
    )
    raise RecipeError("These rows cannot be packed.", [problem])


def _within_memory(job: Job, recipe: Recipe, trained: int, display: Display) -> Recipe:
    """With micro-batches small enough for the memory that is free now; the effective batch stays."""
    longest = int(job.train.lengths.max())
    row = batch_loader(job, recipe)(np.array([int(job.train.lengths.argmax())]))
    autocast = forward_for(job, recipe).autocast
    free = free_bytes(row.device) - (AVERAGED_BYTES * trained if recipe.training.averaging else 0)
    fit = rows_that_fit(job.model, job.objective, row, autocast, trained, free)
    if fit * longest >= (recipe.training.micro_batch_tokens or 0):
        return recipe
    display.say(f"Memory: {fit} of the longest rows fit at once, so batches are worked through in pieces.")
    return recipe.replace({"training.micro_batch_tokens": fit * longest})


def _choose_precision(job: Job, recipe: Recipe, display: Display) -> str:
    asked: str = recipe.training.precision
    if asked != "auto" or job.forward.precision == "float32":
        return job.forward.precision if asked == "auto" else asked
    tokens = min(recipe.training.micro_batch_tokens or PROBE_TOKENS, PROBE_TOKENS)
    pieces = piece_maker(job, recipe.replace({"training.micro_batch_tokens": tokens}))
    rows = pieces(_spread(job, recipe, 1)[0])[0]  # of the width in the middle of an epoch's
    faster, seconds = probe.faster_precision(job.model, job.objective, batch_loader(job, recipe)(rows))
    shown = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in seconds.items())
    display.say(f"Number format: {faster} ({len(rows)} rows take {shown})")
    return faster


def _spread(job: Job, recipe: Recipe, count: int) -> list[np.ndarray]:
    lengths = job.train.lengths
    batches = list(planned_batches(recipe, lengths, steps_per_epoch(recipe, len(job.train))))
    batches.sort(key=lambda rows: int(lengths[rows].max()))
    places = [(2 * i + 1) * len(batches) // (2 * count) for i in range(count)]
    return [batches[place] for place in places]


def planned_seconds(job: Job, recipe: Recipe) -> float:
    """About how long the steps of a recipe with all choices made would take, by a few of them made now."""
    steps = planned_steps(recipe, len(job.train))
    phase = largest_phase(job, recipe, steps)
    groups, job = activate(job.model, phase), replace(job, objective=phase.wrap(job.objective))
    token_seconds, step_seconds = _pace(job, recipe, groups)
    tokens = sum(map(padded_tokens(job, recipe), planned_batches(recipe, job.train.lengths, steps)))
    return tokens * token_seconds + steps * step_seconds


def _affordable(job: Job, recipe: Recipe, groups: Sequence[dict[str, Any]]) -> int:
    token_seconds, step_seconds = _pace(job, recipe, groups)
    planned = planned_batches(recipe, job.train.lengths, planned_steps(recipe, len(job.train)))
    budget = (recipe.training.minutes or 0.0) * 60 / RESERVE_FOR_THE_REST
    return probe.steps_that_fit(budget, planned, padded_tokens(job, recipe), token_seconds, step_seconds)


def _pace(job: Job, recipe: Recipe, groups: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Seconds per padded token, and per optimizer step."""
    batches = _spread(job, recipe, PROBE_BATCHES)
    autocast = forward_for(job, recipe).autocast
    token_seconds = probe.seconds_per_token(
        job.model, job.objective, batches, piece_maker(job, recipe), batch_loader(job, recipe), autocast
    )
    return token_seconds, probe.optimizer_seconds(list(groups), optimizer_maker(job, recipe))
