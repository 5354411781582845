"""Unfreeze from the top, layer by layer: Howard and Ruder (2018), ULMFiT, section 3.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from chainrule.core.recipe import Optimizer, Section
from chainrule.core.task import Task
from chainrule.errors import RecipeError
from chainrule.models.inspect import anatomy
from chainrule.strategies.base import Phase, decayed_groups, too_many_layers


def misfit(task: Task) -> str | None:
    """Why there is nothing to begin with; None where there is a head, or a language model's last norm."""
    return "a model of vectors has no head to begin with" if task.makes_vectors else None


class Options(Section):
    """The order of things.

    Attributes:
        until: share of the steps after which everything is trained. Until then equal shares of the steps go to the
            head alone, to the head and the top layers, and so on; the embeddings come last.
        layers: how many layers more are trained each time.
    """

    until: float = Field(default=0.5, gt=0, lt=1)
    layers: int = Field(default=1, ge=1)


class Gradual:
    """The head is trained first, then with it one layer more after another, the embeddings last."""

    default_learning_rate = 3e-4
    width_exponent = 1.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """One phase for each unfreezing; in a run of few steps several of them fall together.

        Raises:
            RecipeError: the model has fewer layers than are to be unfrozen at a time.
        """
        parts, at_a_time = anatomy(model), self.options.layers
        problems = too_many_layers("layers", at_a_time, len(parts.layers))
        if problems:
            raise RecipeError("The model has too few layers for this strategy.", problems)
        downwards = parts.layers[::-1]
        portions = [downwards[first : first + at_a_time] for first in range(0, len(downwards), at_a_time)]
        stages = [parts.head, *(sum(portion, ()) for portion in portions), parts.embeddings]
        begun: dict[int, list[str]] = {}
        names: list[str] = []
        for number, stage in enumerate(stages):
            names = [*names, *stage]
            begun[round(self.options.until * steps * number / (len(stages) - 1))] = names
        return [
            Phase(start, decayed_groups(model, chosen, optimizer)) for start, chosen in begun.items() if start < steps
        ]

    def finish(self, model: Any) -> Any:
        return model
