"""Train some of the layers and the head; what is not chosen stays as it was pretrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.inspect import anatomy, matching, outline
from chainrule.strategies.base import Phase, decayed_groups, too_many_layers


class Options(Section):
    """What is trained beside the head, all of it together.

    Attributes:
        top: layers, counted from the head down.
        first: layers, counted from the embeddings up.
        parameters: patterns of parameter names, such as `encoder.layer.1.*` or `*.LayerNorm.*`; a name may begin
            anywhere after a dot.
        embeddings: the embeddings, too.
    """

    top: int = Field(default=2, ge=0)
    first: int = Field(default=0, ge=0)
    parameters: tuple[str, ...] = ()
    embeddings: bool = False


class Partial:
    """The chosen layers and the head are trained; frozen layers at the bottom run without dropout and backward."""

    default_learning_rate = 3e-4
    width_exponent = 1.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """One phase.

        Raises:
            RecipeError: more layers than the model has, or a pattern that no parameter matches.
        """
        parts, options = anatomy(model), self.options
        problems = [
            *too_many_layers("top", options.top, len(parts.layers)),
            *too_many_layers("first", options.first, len(parts.layers)),
            *(_no_match(model, pattern) for pattern in options.parameters if not matching(model, pattern)),
        ]
        if problems:
            raise RecipeError("The model has no such layers to train.", problems)
        chosen = set(parts.head)
        for layer in (*parts.layers[len(parts.layers) - options.top :], *parts.layers[: options.first]):
            chosen.update(layer)
        for pattern in options.parameters:
            chosen.update(matching(model, pattern))
        if options.embeddings:
            chosen.update(parts.embeddings)
        names = [name for name, _ in model.named_parameters() if name in chosen]
        return [Phase(0, decayed_groups(model, names, optimizer))]

    def finish(self, model: Any) -> Any:
        return model


def _no_match(model: Any, pattern: str) -> Problem:
    return Problem(
        where=Where(field="strategy.options.parameters"),
        expected=f"a pattern of the model's parameters: {', '.join(outline(model))}",
        got=f"{pattern!r}, which matches none",
        todo="Correct it; * stands for anything.",
    )
