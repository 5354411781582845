"""Short measurements before step one: which number format is faster here, and how many steps fit into the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from chainrule.core.task import Objective
from chainrule.data.batch import Batch
from chainrule.kernels.adamw import forget_rows
from chainrule.system.device import synchronize
from chainrule.system.seed import kept_generators
from chainrule.training.loop import MakeOptimizer, mean_and_clip

REPEATS = 4
SAFETY = 0.9


def faster_precision(model: Any, objective: Objective, batch: Batch) -> tuple[str, dict[str, float]]:
    """Forward and backward of one batch in float32 and bfloat16 autocast, in turn.

    Returns:
        The faster format, and the shortest time of each in seconds: other work on the machine only ever adds time.
    """
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    device = batch.device
    with kept_generators(), kept_buffers(model):
        for repeat in range(REPEATS + 1):
            for precision, times in seconds.items():
                began = _now(device)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                    objective.accumulate(model, batch)
                model.zero_grad(set_to_none=True)
                if repeat:  # the first one of each warms up
                    times.append(_now(device) - began)
    shortest = {precision: min(times) for precision, times in seconds.items()}
    return min(shortest, key=lambda precision: shortest[precision]), shortest


@contextmanager
def kept_buffers(model: Any) -> Iterator[None]:
    """Put what a model remembers of its batches, such as the means of batch normalisation, back as it was."""
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])


def seconds_per_token(
    model: Any,
    objective: Objective,
    batches: Sequence[np.ndarray],
    pieces: Callable[[np.ndarray], list[np.ndarray]],
    load: Callable[[np.ndarray], Batch],
    autocast: Callable[[], Any],
) -> float:
    """Seconds of forward and backward per padded token, over a few of the run's own batches.

    The gradients of the last one stay.
    """
    times, tokens = [], []
    device = next(model.parameters()).device
    with kept_generators(), kept_buffers(model):
        for number, rows in enumerate([batches[0], *batches]):
            model.zero_grad(set_to_none=True)
            began = _now(device)
            size = 0
            for part in pieces(rows):
                batch = load(part)
                size += batch.padded_tokens
                with autocast():
                    objective.accumulate(model, batch)
            if number:
                times.append(_now(device) - began)
                tokens.append(size)
    return sum(times) / sum(tokens)


def optimizer_seconds(groups: list[dict[str, Any]], make_optimizer: MakeOptimizer) -> float:
    """Seconds of one optimizer step with the gradients that are there.

    Learning rate and decay are 0, so nothing changes. The gradients are gone afterwards.
    """
    still = [{**group, "lr": 0.0, "weight_decay": 0.0} for group in groups]
    parameters = [parameter for group in still for parameter in group["params"]]
    optimizer = make_optimizer(still)
    optimizer.step()
    device = parameters[0].device
    began = _now(device)
    mean_and_clip(parameters, 1, None)
    optimizer.step()
    seconds = _now(device) - began
    optimizer.zero_grad(set_to_none=True)
    for parameter in parameters:
        forget_rows(parameter)
    return seconds


def steps_that_fit(
    seconds: float,
    batches: Iterable[np.ndarray],
    tokens: Callable[[np.ndarray], int],
    token_seconds: float,
    step_seconds: float,
) -> int:
    """How many of the planned batches fit into `seconds`, with a margin; at least one.

    Args:
        tokens: rows of an effective batch -> tokens that are worked through for them.
    """
    left, steps = seconds * SAFETY, 0
    for rows in batches:
        left -= tokens(rows) * token_seconds + step_seconds
        if left < 0:
            break
        steps += 1
    return max(1, steps)


def _now(device: torch.device) -> float:
    """The clock, after the device has done all it was told."""
    synchronize(device)
    return time.perf_counter()
