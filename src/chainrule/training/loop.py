"""The training loop: a generator that makes one optimizer step at a time and does no I/O.

It knows nothing of tasks, strategies or files. What is trained comes as phases, the loss as an objective, the data
as batches of row positions. The caller logs, validates, saves, and stops by no longer asking for the next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from chainrule.training.optimizers import Optimizer

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


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
        pieces: the rows of an effective batch -> those of its micro-batches.
        load: row positions -> Batch on the device.
        autocast: makes the context in which forward and backward run.
        factor: 0-based step -> factor on every learning rate.
        seed: with the step's number it decides every mask of dropout.
    """

    pieces: Callable[[np.ndarray], list[np.ndarray]]
    load: Callable[[np.ndarray], Batch]
    autocast: Callable[[], Any]
    factor: Callable[[int], float]
    max_gradient_norm: float | None
    seed: int = 0


def training_steps(
    model: Any,
    objective: Objective,
    batches: Iterable[np.ndarray],
    phases: Sequence[Phase],
    make_optimizer: MakeOptimizer,
    stepping: Stepping,
) -> Iterator[Step]:
    """Make one step per batch of row positions.

    The gradient of a step is that of the mean loss over its effective batch, however it is split into micro-batches.

    Yields:
        Step after each optimizer step.
    """
    starts = {phase.start_step: phase for phase in phases}
    optimizer: Optimizer | None = None
    trained: list[torch.nn.Parameter] = []
    began = time.perf_counter()
    for index, rows in enumerate(batches):
        if index in starts:
            groups = activate(model, starts[index])
            trained = [parameter for group in groups for parameter in group["params"]]
            optimizer = _with_groups(optimizer, groups, make_optimizer)
        if optimizer is None:
            raise ValueError("the first phase must start at step 0")
        seed_step(stepping.seed, index)
        loss_sum, count, tokens = 0.0, 0, 0
        for part in stepping.pieces(rows):
            batch = stepping.load(part)
            with stepping.autocast():
                part_sum, part_count = objective.accumulate(model, batch)
            loss_sum, count, tokens = loss_sum + float(part_sum), count + part_count, tokens + batch.tokens
        norm, optimizer.gradient_scale = mean_and_clip(trained, count, stepping.max_gradient_norm)
        factor = stepping.factor(index)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
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
    wanted = {name for group in phase.groups for name in group.names}
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


def _with_groups(optimizer: Optimizer | None, groups: list[dict[str, Any]], make_optimizer: MakeOptimizer) -> Optimizer:
    """The optimizer over the new groups; parameters that go on being trained keep their state."""
    if optimizer is None:
        return make_optimizer(groups)
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)
    return optimizer
