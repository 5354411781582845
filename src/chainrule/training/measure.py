"""What a training costs, seen by making a few of its steps: the loop as it is, on some of the run's own batches.

What is trained meanwhile is thrown away.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch

from chainrule.core.recipe import Recipe
from chainrule.data.batch import by_length, collate
from chainrule.data.encode import Encoded
from chainrule.inference.predict import BATCH_TOKENS, evaluating, said_of
from chainrule.models.inspect import anatomy, count_parameters
from chainrule.models.trunk import frozen_depth, trunk_states
from chainrule.system.device import synchronize
from chainrule.system.memory import PeakMemory, return_freed
from chainrule.system.progress import Quiet
from chainrule.system.seed import kept_generators, seed_everything
from chainrule.tasks.prepare import Prepared
from chainrule.training.checkpoint import Standing
from chainrule.training.job import (
    Job,
    forward_for,
    piece_maker,
    planned_batches,
    planned_steps,
    steps_per_epoch,
    trained_names,
)
from chainrule.training.run import plan
from chainrule.training.shortage import steps_in_memory
from chainrule.training.trainer import above_frozen, referring, settle_formats
from chainrule.training.trunk import is_kept
from chainrule.training.validation import trained_weights

BATCHES = 12  # of the run's own, from narrow to wide, and the widest: what each width leaves behind adds up
PASSES = 2  # over them; the first warms up
TRUNK_PIECES = 4  # of the frozen layers' run over all rows
LEAST_STEPS = 4
STATE_BYTES = 12  # gradient and AdamW's moments
SECONDS = 12.0  # after which no further step is made, once the widest batch was seen
LEAST_ROWS = 8  # of validation


@dataclass(frozen=True)
class Stage:
    """What one phase of a strategy trains.

    Attributes:
        start: the share of the training that lies before it.
        trained: numbers.
        weights: those among them that every token is multiplied with.
        reach: how many layers, from the top, the backward goes through.
    """

    start: float
    trained: int
    weights: int
    reach: int


@dataclass(frozen=True)
class Work:
    """What a step is made of, as the model and the strategy say.

    Attributes:
        parameters: of the whole model.
        weights: of all layers, that every token is multiplied with.
        frozen: layers at the bottom that run once and not in every step.
        trained: numbers that any phase trains.
    """

    parameters: int
    layers: int
    hidden: int
    weights: int
    frozen: int
    trained: int
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Load:
    """What steps have to do, an entry each.

    Attributes:
        tokens: (n,) padded.
        squares: (n,) padded tokens times the width of the batch they stand in.
        places: (n,) share of the training that lies before each.
    """

    tokens: np.ndarray
    squares: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What was seen.

    Attributes:
        whole: of the training that was asked for.
        made: of the steps that were made; `seconds` is how long each took; the first `warm` of them warmed up.
        trunk: of the frozen layers over all rows, once; None where they run in every step, or their output is there.
        trunk_seconds: of a piece of it, whose load is `trunk_piece`.
        peak_memory_mb: of the process; None where no step was made.
        wide_mb: of that, what the widest batch has added beside weights and optimizer.
        shape_mb: that a batch of another shape than all before it adds for good: the libraries keep code for each.
        micro_batch_tokens, precision: as they were resolved.
    """

    work: Work
    whole: Load
    made: Load
    seconds: np.ndarray
    warm: int
    trunk: Load | None
    trunk_piece: Load | None
    trunk_seconds: float
    peak_memory_mb: float | None
    wide_mb: float
    shape_mb: float
    micro_batch_tokens: int
    precision: str


def measure(recipe: Recipe, prepared: Prepared, steps: int | None = None) -> Measured:
    """Make some steps of a recipe on rows that are ready.

    Args:
        steps: 0 for none: the loads alone, as counted; None for as many as tell enough.

    Raises:
        UserError: the recipe cannot be trained on this model, or there is not enough memory.
    """
    gc.collect()
    return_freed()
    train = prepared.encoded["train"]
    total = planned_steps(recipe, len(train))
    batches = _chosen_batches(recipe, train.lengths, total)
    rows = train.take(np.concatenate(batches))
    held_out = _longest(prepared.encoded["validation"])
    once = total <= steps_per_epoch(recipe, len(train))
    wanted = min(total, PASSES * len(batches)) if steps is None else steps
    open_recipe = recipe.replace(
        OFF | {"training.steps": max(wanted, 1)} | ({"training.trunk_cache": False} if once else {})
    )
    few = replace(prepared, encoded={"train": rows, "validation": held_out}, unlabelled=None)
    with PeakMemory() as memory:
        job, resolved = plan(open_recipe, few, Quiet())
        work = _work(job, resolved, total, once)
        whole = load_of(replace(job, train=train), resolved.replace({"training.steps": total}), total)
        if not wanted:
            return _seen(work, whole, resolved, None)
        settle_formats(job, resolved, wanted)
        job = referring(job, resolved, Quiet())
        every = {"train": train, "validation": prepared.encoded["validation"]}
        trunk, piece, trunk_seconds = _trunk(job, resolved, work, every)
        job, _ = above_frozen(job, resolved, wanted, Quiet())
        seconds, resident, copies = _make_steps(job, resolved)
        said_of(forward_for(job, resolved), job.validation, job.task)
        made = load_of(job, resolved, len(seconds))
        del job, copies
        peak = memory.peak_mb
    gc.collect()
    found = _seen(work, whole, resolved, peak)
    seen: dict[str, Any] = {"made": made, "seconds": np.array(seconds), "warm": min(len(batches), len(seconds) // 2)}
    frozen: dict[str, Any] = {"trunk": trunk, "trunk_piece": piece, "trunk_seconds": trunk_seconds}
    shape, wide = _growth(made, resident, work.trained)
    return replace(found, **seen, **frozen, shape_mb=shape, wide_mb=wide)


OFF: dict[str, Any] = {
    "training.minutes": None,
    "training.patience": None,
    "training.track": [],
    "training.profile": False,
    "training.watch_gradients": False,
}


def load_of(job: Job, recipe: Recipe, steps: int) -> Load:
    """What the first `steps` steps of a job have to do."""
    pieces, lengths = piece_maker(job, recipe), job.train.lengths
    tokens, squares = np.zeros(steps), np.zeros(steps)
    for place, rows in enumerate(planned_batches(recipe, lengths, steps)):
        for part in pieces(rows):
            widths = lengths[part]
            padded = int(widths.sum()) if recipe.training.packing else int(widths.max()) * len(part)
            tokens[place] += padded
            squares[place] += float(np.square(widths).sum()) if recipe.training.packing else padded * int(widths.max())
    return Load(tokens, squares, np.arange(steps) / max(planned_steps(recipe, len(job.train)), 1))


def _seen(work: Work, whole: Load, recipe: Recipe, peak: float | None) -> Measured:
    """Without steps."""
    none = Load(np.zeros(0), np.zeros(0), np.zeros(0))
    tokens = recipe.training.micro_batch_tokens or 0
    return Measured(
        work, whole, none, np.zeros(0), 0, None, None, 0.0, peak, 0.0, 0.0, tokens, recipe.training.precision
    )


def _chosen_batches(recipe: Recipe, lengths: np.ndarray, steps: int) -> list[np.ndarray]:
    """Of those that will come first, from narrow to wide, and the widest: memory goes by that."""
    batches = list(planned_batches(recipe, lengths, min(steps, steps_per_epoch(recipe, len(lengths)))))
    widest = max(range(len(batches)), key=lambda place: int(lengths[batches[place]].max()))
    rest = sorted(
        (place for place in range(len(batches)) if place != widest and len(batches[place]) == len(batches[0])),
        key=lambda place: int(lengths[batches[place]].max()),
    )
    spread = [rest[(2 * i + 1) * len(rest) // (2 * BATCHES)] for i in range(BATCHES)] if rest else []
    return [batches[place] for place in dict.fromkeys([widest, *spread])]


def _longest(encoded: Encoded) -> Encoded:
    """Rows enough to fill a batch of validation, the longest ones."""
    order = np.argsort(-encoded.lengths, kind="stable")
    enough = int(np.searchsorted(np.cumsum(encoded.lengths[order]), 2 * BATCH_TOKENS)) + 1
    return encoded.take(np.sort(order[: max(enough, LEAST_ROWS)]))


def _work(job: Job, recipe: Recipe, steps: int, once: bool) -> Work:
    parts = anatomy(job.model)
    named = dict(job.model.named_parameters())
    layers = [{name for name in layer if named[name].ndim > 1} for layer in parts.layers]
    size = {name: parameter.numel() for name, parameter in named.items()}
    stages = []
    phases = job.strategy.phases(job.model, recipe.optimizer, steps)
    for phase in phases:
        touched = [bool(phase.names & set(layer)) for layer in parts.layers]
        below = bool(phase.names & set(parts.embeddings))
        reach = len(layers) if below else len(layers) - touched.index(True) if True in touched else 0
        inside = phase.names & set().union(*layers) if layers else set()
        stages.append(
            Stage(
                phase.start_step / steps,
                sum(map(size.__getitem__, phase.names)),
                sum(map(size.__getitem__, inside)),
                reach,
            )
        )
    every = set().union(*(phase.names for phase in phases))
    frozen = frozen_depth(job.model, every) if recipe.training.trunk_cache and not once else 0
    return Work(
        parameters=count_parameters(job.model),
        layers=len(layers),
        hidden=int(getattr(job.model.config, "hidden_size", 0) or 0),
        weights=sum(size[name] for layer in layers for name in layer),
        frozen=frozen,
        trained=sum(size[name] for name in every),
        stages=tuple(stages),
    )


def _trunk(job: Job, recipe: Recipe, work: Work, every: dict[str, Encoded]) -> tuple[Load | None, Load | None, float]:
    """What the frozen layers have to do over all rows, the like of a piece of it, and how long that piece took."""
    forward = forward_for(job, recipe)
    if not work.frozen or is_kept(forward, work.frozen, every):
        return None, None, 0.0
    pieces = [(split, rows) for split in every.values() for rows in by_length(split.lengths, BATCH_TOKENS)]
    spread = [pieces[(2 * i + 1) * len(pieces) // (2 * TRUNK_PIECES)] for i in range(TRUNK_PIECES)]
    times = []
    with kept_generators(), evaluating(job.model), torch.inference_mode(), forward.autocast():
        for split, rows in [spread[0], *spread]:  # the first one warms up
            synchronize(forward.device)
            began = time.perf_counter()
            batch = collate(split, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)
            trunk_states(job.model, work.frozen, batch.inputs)
            synchronize(forward.device)
            times.append(time.perf_counter() - began)
    return _widths(pieces), _widths(spread), sum(times[1:])


def _widths(pieces: Sequence[tuple[Encoded, np.ndarray]]) -> Load:
    widths = np.array([int(split.lengths[rows].max()) for split, rows in pieces], dtype=float)
    tokens = widths * np.array([len(rows) for _, rows in pieces])
    return Load(tokens, tokens * widths, np.zeros(len(pieces)))


def _make_steps(job: Job, recipe: Recipe) -> tuple[list[float], list[int], list[Any]]:
    """How long each step took, the bytes of the process before and after each, and what a run keeps beside the weights.

    That is those of the start, the best, and the next best.
    """
    names = trained_names(job, recipe, recipe.training.steps or 1)
    named = dict(job.model.named_parameters())
    copies: list[Any] = [{name: named[name].detach().clone() for name in names}]
    seconds, resident, process = list[float](), list[int](), psutil.Process()
    standing, began = Standing(), time.perf_counter()
    seed_everything(recipe.seed)
    widest, seen = int(job.train.lengths.max()), False
    steps = steps_in_memory(job, recipe, standing, _forget, Quiet())
    planned = planned_batches(recipe, job.train.lengths, recipe.training.steps or 1)
    resident.append(process.memory_info().rss)
    for place, (step, rows) in enumerate(zip(steps, planned, strict=False), start=1):
        seconds.append(step.seconds)
        resident.append(process.memory_info().rss)
        seen |= int(job.train.lengths[rows].max()) == widest
        if seen and place >= LEAST_STEPS and time.perf_counter() - began > SECONDS:
            break
    copies += [trained_weights(job.model, names) for _ in range(2)]
    _touch(standing.progress.optimizer)
    return seconds, resident, copies


def _growth(made: Load, resident: list[int], trained: int) -> tuple[float, float]:
    """MiB that a step with another number of tokens adds for good (the median), and that wider steps add in all.

    Args:
        resident: bytes of the process before the first step and after each.
        trained: numbers, whose gradients and moments the first step makes as well.
    """
    tokens, grown = made.tokens.tolist(), np.diff(resident) / 2**20
    grown[0] = max(0.0, grown[0] - STATE_BYTES * trained / 2**20)
    wider = [place for place in range(len(tokens)) if tokens[place] > max(tokens[:place], default=0)]
    others = [grown[n] for n in range(2, len(tokens)) if n not in wider and tokens[n] not in tokens[:n]]
    return max(0.0, float(np.median(others))) if others else 0.0, max(0.0, float(sum(grown[wider])))


def _touch(optimizer: Any) -> None:
    """Write to all of an optimizer's state: rare tokens' moments, which few steps leave at zero, take no room yet."""
    for state in optimizer.state.values() if optimizer is not None else ():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.add_(0.0)


def _forget(event: dict[str, object]) -> None:
    """The events of a measurement are not kept."""
