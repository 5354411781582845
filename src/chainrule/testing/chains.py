"""Chains of small layers that can be broken in known ways, and a training of them that is watched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.core.recipe import Optimizer, Spec
from chainrule.core.task import Objective
from chainrule.data.batch import Batch
from chainrule.evaluation.diagnosis import Case
from chainrule.evaluation.trace import Trace
from chainrule.models.inspect import Part
from chainrule.strategies.base import ParameterGroup, Phase
from chainrule.tasks.objectives import class_objective
from chainrule.training.divergence import DivergenceError, first_bad_part
from chainrule.training.loop import Progress, Stepping, training_steps
from chainrule.training.optimizers import make_optimizer
from chainrule.training.watch import make_watch, watched

WIDTH, ROWS = 16, 64


class Layer(nn.Module):
    """activation(W x + b), on top of x where `residual`."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor], *, residual: bool) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = nn.Linear(WIDTH, WIDTH), activation, residual

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(b, WIDTH) to (b, WIDTH)."""
        made = self.activation(self.linear(values))
        return values + made if self.residual else made


class Chain(nn.Module):
    """`depth` layers and a head over two classes."""

    def __init__(
        self,
        activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh,
        *,
        depth: int = 8,
        residual: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(Layer(activation, residual=residual) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, input_ids: torch.Tensor) -> Any:
        """(b, WIDTH) numbers, called as a transformers model is, to logits (b, 2)."""
        for layer in self.layers:
            input_ids = layer(input_ids)
        return SimpleNamespace(logits=self.head(input_ids))

    @property
    def stack(self) -> list[Layer]:
        """Its layers, bottom first."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its layers and its head."""
        names = [name for name, _ in self.named_parameters()]
        found = [
            Part(f"layer {n}", tuple(name for name in names if name.startswith(f"layers.{n}.")), f"layers.{n}")
            for n in range(len(self.layers))
        ]
        return (*found, Part("head", tuple(name for name in names if name.startswith("head.")), "head"))


def watch_training(
    model: Chain,
    *,
    steps: int = 40,
    rates: Mapping[str, float] | None = None,
    optimizer: Optimizer | None = None,
    objective: Objective | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Train on made-up rows of which the first number decides the class, and look at it.

    Args:
        rates: learning rate by the beginning of the parameters' names; the first that fits counts.

    Returns:
        The events; a divergence ends the training and is one of them, as in the driver of the loop.
    """
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.normal(size=(ROWS, WIDTH)).astype(np.float32))
    targets = (values[:, 0] > 0).long()
    events: list[dict[str, Any]] = []

    def load(rows: np.ndarray) -> Batch:
        return Batch({"input_ids": values[rows]}, targets[rows], rows, len(rows))

    batches = [generator.permutation(ROWS)[:batch_size] for _ in range(steps)]
    phase = Phase(0, _groups(model, rates or {"": 1e-3}))
    stepping = Stepping(lambda rows: [rows], load, contextlib.nullcontext, lambda step: 1.0, 1.0)
    loss = objective or class_objective(Spec(name="default"), targets.numpy())
    progress, watch = Progress(), make_watch(model, model.parts, phase.names, steps)
    maker = partial(make_optimizer, optimizer or Optimizer())
    events.append(watch.as_event())
    try:
        made = training_steps(model, loss, batches, [phase], maker, stepping, progress)
        for step in watched(made, watch, progress, events.append):
            events.append({"event": "step", "step": step.step, "loss": step.loss})
    except DivergenceError as error:
        first = first_bad_part(model, load(batches[error.step - 1]), contextlib.nullcontext)
        events.append({"event": "diverged", "step": error.step, "reason": str(error), "first_in": first})
    return events


def _groups(model: nn.Module, rates: Mapping[str, float]) -> tuple[ParameterGroup, ...]:
    """One parameter group for each learning rate."""
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        found.setdefault(next(beginning for beginning in rates if name.startswith(beginning)), []).append(name)
    return tuple(ParameterGroup(tuple(names), rates[beginning], 0.0) for beginning, names in found.items())


def case_of(events: Sequence[Mapping[str, Any]], strategy: str = "full") -> Case:
    """What the detectors are to judge."""
    trace = Trace()
    for event in events:
        trace.add(event)
    return Case(trace, [event["loss"] for event in events if event["event"] == "step"], strategy)
