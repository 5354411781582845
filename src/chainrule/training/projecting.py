"""A strategy around a strategy: it trains the projection of a student's states, too, and leaves it behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chainrule.core.recipe import Optimizer, Section
from chainrule.strategies.base import ParameterGroup, Phase, Strategy
from chainrule.training.states import Projection

PLACE = "projection"  # in the model, where checkpoints find it
NAMES = (f"{PLACE}.weight",)


class Projecting:
    """What another strategy trains, and the projection in every phase of it.

    Attributes:
        inner: whose `prepare` was called already.
    """

    def __init__(self, inner: Strategy, model: Any, projection: Projection) -> None:
        self.inner = inner
        model.add_module(PLACE, projection)

    @property
    def options(self) -> Section:
        return self.inner.options

    @property
    def default_learning_rate(self) -> float:
        return self.inner.default_learning_rate

    @property
    def width_exponent(self) -> float:
        return self.inner.width_exponent

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        if optimizer.learning_rate is None:
            raise ValueError("the learning rate must be resolved before the parameter groups are made")
        own = ParameterGroup(NAMES, optimizer.learning_rate, optimizer.weight_decay)
        return [
            replace(phase, groups=(*_without(phase.groups), own))
            for phase in self.inner.phases(model, optimizer, steps)
        ]

    def finish(self, model: Any) -> Any:
        delattr(model, PLACE)
        return self.inner.finish(model)


def _without(groups: tuple[ParameterGroup, ...]) -> tuple[ParameterGroup, ...]:
    """The groups without what stands in one of its own."""
    kept = [replace(group, names=tuple(name for name in group.names if name not in NAMES)) for group in groups]
    return tuple(group for group in kept if group.names)
