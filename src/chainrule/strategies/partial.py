"""Train the top layers and the head; what is below stays as it was pretrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.inspect import anatomy
from chainrule.strategies.base import Phase, decayed_groups


class Options(Section):
    """`top` is the number of layers that are trained, counted from the head."""

    top: int = Field(default=2, ge=1)


class Partial:
    """The top `top` layers and the head are trained; the frozen layers run without dropout and without backward."""

    default_learning_rate = 1e-4

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """One phase.

        Raises:
            RecipeError: the model has fewer layers than `top`.
        """
        parts = anatomy(model)
        if self.options.top > len(parts.layers):
            problem = Problem(
                where=Where(field="strategy.options.top"),
                expected=f"at most {len(parts.layers)}, the layers this model has",
                got=str(self.options.top),
                todo="Lower it, or use --strategy full.",
            )
            raise RecipeError("The model has too few layers for this strategy.", [problem])
        top = [name for layer in parts.layers[-self.options.top :] for name in layer]
        return [Phase(0, decayed_groups(model, [*top, *parts.head], optimizer))]

    def finish(self, model: Any) -> Any:
        return model
