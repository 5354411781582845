"""The shelf of weight averages: what is validated and kept is a mean of the weights of many steps.

Polyak and Juditsky (1992), Acceleration of Stochastic Approximation by Averaging. An average is an optimizer around the
optimizer. It lies in the optimizer's state of each parameter, where checkpoints find it: `average`, a tensor like the
parameter, and `averaged`, the number of steps that have been made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field

from chainrule.core.recipe import Section, Spec
from chainrule.core.shelf import Entry, take
from chainrule.kernels.adamw import catch_up
from chainrule.training.optimizers import Optimizer

Share = Callable[[int], float]  # steps made, from 1 -> what the weights of the last one count in the average


class EmaOptions(Section):
    """`decay`: each step counts this many times as much as the one after it."""

    decay: float = Field(default=0.99, gt=0, lt=1)


class SwaOptions(Section):
    """`start`: the share of all steps after which the average begins; until then it is the weights themselves."""

    start: float = Field(default=0.75, ge=0, lt=1)


def _ema(options: EmaOptions, steps: int) -> Share:
    """Weights decay^(t − i) of the steps i ≤ t, made to sum to 1 as in Kingma and Ba (2015), Adam, section 3."""
    return lambda made: (1 - options.decay) / (1 - options.decay**made)


def _swa(options: SwaOptions, steps: int) -> Share:
    """Izmailov et al. (2018), Averaging Weights Leads to Wider Optima and Better Generalization; here of every step."""
    before = math.floor(options.start * steps)
    return lambda made: 1 / max(made - before, 1)


AVERAGES: dict[str, Entry] = {
    "ema": Entry(EmaOptions, _ema, "exponential moving average"),
    "swa": Entry(SwaOptions, _swa, "equal average of the last steps"),
}


def average_share(averaging: Spec, steps: int) -> Share:
    """The average a recipe names, of a run of so many steps.

    Raises:
        RecipeError: no such average, or options it does not have.
    """
    fields = ("training.averaging.name", "training.averaging.options")
    made: Share = take(AVERAGES, averaging, "average", fields)(steps)
    return made


class Averaged:
    """An optimizer that averages the weights after every step of another.

    A parameter that is trained from a later step on counts as if it had been before as it was then.
    """

    def __init__(self, inner: Optimizer, share: Share) -> None:
        self.inner, self.share, self.gradient_scale = inner, share, 1.0
        self.param_groups, self.state = inner.param_groups, inner.state

    @torch.no_grad()
    def step(self) -> None:
        """One update, and its part in the average."""
        self.inner.gradient_scale = self.gradient_scale
        self.inner.step()
        self.gradient_scale = 1.0
        updated = {p for group in self.param_groups for p in group["params"] if p.grad is not None}
        averaged = {parameter for parameter, state in self.state.items() if "average" in state}
        made = 1 + max((self.state[parameter]["averaged"] for parameter in averaged), default=0)
        for parameter in updated | averaged:
            catch_up(parameter)
            state = self.state[parameter]
            if "average" in state:
                state["average"].lerp_(parameter, self.share(made))
            else:
                state["average"] = parameter.detach().clone()
            state["averaged"] = made

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train these parameters too."""
        self.inner.add_param_group(param_group)


@contextmanager
def averages_in_place(optimizer: Optimizer) -> Iterator[None]:
    """Inside, parameters hold their averages; those that have none stay as they are."""
    _exchange(optimizer)
    try:
        yield
    finally:
        _exchange(optimizer)


@torch.no_grad()
def _exchange(optimizer: Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        if "average" in state:
            weights = parameter.clone()
            parameter.copy_(state["average"])
            state["average"].copy_(weights)
