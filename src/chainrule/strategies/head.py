"""Train the head alone: a probe of what the pretrained features already tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chainrule.core.recipe import Optimizer, Section
from chainrule.core.task import Task
from chainrule.models.inspect import anatomy
from chainrule.strategies.base import Phase, decayed_groups


def misfit(task: Task) -> str | None:
    """Why a task's models have no head that could be trained alone; None where they have one."""
    if task.makes_vectors:
        return "what makes a vector of a text has no weights above the pretrained layers"
    if not task.writes:
        return None
    return "a language model has no fresh head: its output layer is pretrained like the rest of it"


class Options(Section):
    """`head` has no options."""


class Head:
    """Everything above the last layer (pooler and classifier) is trained; the encoder runs without dropout."""

    default_learning_rate = 3e-3
    width_exponent = 1.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        return [Phase(0, decayed_groups(model, anatomy(model).head, optimizer))]

    def finish(self, model: Any) -> Any:
        return model
