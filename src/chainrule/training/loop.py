"""The training loop: a generator that makes one optimizer step at a time and does no I/O.

It knows nothing of tasks, strategies or files. What is trained comes as phases, the loss as an objective, the data
as batches of row positions. The caller logs, validates, saves, and stops by no longer asking for the next step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from chainrule.core.task import Objective
from chainrule.data.batch import Batch
from chainrule.kernels.adamw import gradient_norm
from chainrule.kernels.embedding import coalesce
from chainrule.models.inspect import frozen_modules
from chainrule.strategies.base import Phase
from chainrule.system.seed import seed_step
from chainrule.training.divergence import DivergenceError
from chainrule.training.optimizers import Optimizer

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
Sums = tuple[float, int, int]  # of an effective batch: the loss, what it is the mean of, and the tokens


def own_sums(parameters: Sequence[torch.nn.Parameter], sums: Sums) -> Sums:
    """Those of a process alone."""
    return sums


@dataclass(frozen=True)
class Step:
    """One optimizer step that has been made.

    Attributes:
        step: 1-based.
        loss: mean over the rows of the effective batch.
        gradient_norm: before clipping, of the mean loss.
        seconds: time of this step, batching included, validation between steps not.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Stepping:
    """How a step is made.

    Attributes:
        pieces: the rows of an effective batch -> those of this process's micro-batches.
        load: row positions -> Batch on the device.
        autocast: makes the context in which forward and backward run.
        factor: 0-based step -> factor on every learning rate.
        seed: with the step's number it decides every mask of dropout.
        rank: which of the processes this is that share each batch; they draw other masks.
        add_up: gradients and sums of this process's rows -> those of all rows, the gradients in their place.
    """

    pieces: Callable[[np.ndarray], list[np.ndarray]]
    load: Callable[[np.ndarray], Batch]
    autocast: Callable[[], Any]
    factor: Callable[[int], float]
    max_gradient_norm: float | None
    seed: int = 0
    rank: int = 0
    add_up: Callable[[Sequence[torch.nn.Parameter], Sums], Sums] = own_sums


@dataclass
class Progress:
    """How far a run is. The loop begins here and moves it on; whoever stops the loop can begin again from it.

    Attributes:
        step: optimizer steps made.
        optimizer: with its state; None before the first.
        updating: weights are being changed, so that an error now leaves them neither old nor new.
    """

    step: int = 0
    optimizer: Optimizer | None = None
    updating: bool = False


def training_steps(
    model: Any,
    objective: Objective,
    batches: Iterable[np.ndarray],
    phases: Sequence[Phase],
    make_optimizer: MakeOptimizer,
    stepping: Stepping,
    progress: Progress | None = None,
) -> Iterator[Step]:
    """Make one step per batch of row positions.

    The gradient of a step is that of the mean loss over its effective batch, however it is split into micro-batches.

    Args:
        batches: of the whole run, those of the steps that `progress` has made included.

    Yields:
        Step after each optimizer step.

    Raises:
        DivergenceError: loss or gradient are not finite numbers. The weights are still those before the step.
    """
    progress = progress or Progress()
    starts = {phase.start_step for phase in phases}
    first = progress.step
    began = time.perf_counter()
    for index, rows in islice(enumerate(batches), first, None):
        if index in starts or index == first:
            phase = phase_at(phases, index)
            optimizer, trained = enter(phase, model, make_optimizer, progress)
            loss = phase.wrap(objective)
        seed_step(stepping.seed, index, stepping.rank)
        loss_sum, count, tokens = 0.0, 0, 0
        for part in stepping.pieces(rows):
            batch = stepping.load(part)
            with stepping.autocast():
                part_sum, part_count = loss.accumulate(model, batch)
            loss_sum, count, tokens = loss_sum + float(part_sum), count + part_count, tokens + batch.tokens
        loss_sum, count, tokens = stepping.add_up(trained, (loss_sum, count, tokens))
        norm, optimizer.gradient_scale = mean_and_clip(trained, count, stepping.max_gradient_norm)
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            raise DivergenceError(f"loss {loss_sum / count}, gradient norm {norm} at step {index + 1}", index + 1, rows)
        factor = stepping.factor(index)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        progress.updating = True
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step, progress.updating = index + 1, False
        learning_rate = max(group["lr"] for group in optimizer.param_groups)
        seconds = time.perf_counter() - began
        yield Step(index + 1, loss_sum / count, learning_rate, norm, len(rows), tokens, seconds)
        began = time.perf_counter()


def activate(model: Any, phase: Phase) -> list[dict[str, Any]]:
    """Make exactly the phase's parameters trainable; frozen modules run in evaluation mode, without dropout.

    Returns:
        torch parameter groups with `initial_lr`.
    """
    named = dict(model.named_parameters())
    wanted = phase.names
    for name, parameter in named.items():
        parameter.requires_grad_(name in wanted)
        if name not in wanted:
            parameter.grad = None
    model.train()
    for module in frozen_modules(model):
        module.eval()
    return [
        {
            "params": [named[name] for name in group.names],
            "lr": group.learning_rate,
            "initial_lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in phase.groups
    ]


def mean_and_clip(parameters: Sequence[torch.nn.Parameter], count: int, max_norm: float | None) -> tuple[float, float]:
    """What turns gradients of a summed loss into those of its mean, clipped to `max_norm`.

    Returns:
        The norm of the mean gradient before clipping, and the factor on every gradient.
    """
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = coalesce(parameter.grad)
    norm = gradient_norm([parameter.grad for parameter in parameters if parameter.grad is not None]) / count
    clip = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
    return norm, clip / count


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a 0-based step belongs to.

    Raises:
        ValueError: none has begun by then.
    """
    begun = [phase for phase in phases if phase.start_step <= step]
    if not begun:
        raise ValueError("the first phase must start at step 0")
    return max(begun, key=lambda phase: phase.start_step)


def enter(
    phase: Phase, model: Any, make_optimizer: MakeOptimizer, progress: Progress
) -> tuple[Optimizer, list[torch.nn.Parameter]]:
    """Train what a phase trains; parameters that go on being trained keep their optimizer state."""
    groups = activate(model, phase)
    if progress.optimizer is None:
        progress.optimizer = make_optimizer(groups)
    else:
        progress.optimizer.param_groups.clear()
        for group in groups:
            progress.optimizer.add_param_group(group)
    progress.optimizer.zero_grad(set_to_none=True)
    return progress.optimizer, [parameter for group in groups for parameter in group["params"]]
