"""Train every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chainrule.core.recipe import Optimizer, Section
from chainrule.strategies.base import Phase, decayed_groups


class Options(Section):
    """`full` has no options."""


class Full:
    """Every parameter is trained from the first step."""

    default_learning_rate = 1.5e-4
    width_exponent = 1.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        names = [name for name, _ in model.named_parameters()]
        return [Phase(0, decayed_groups(model, names, optimizer))]

    def finish(self, model: Any) -> Any:
        return model
