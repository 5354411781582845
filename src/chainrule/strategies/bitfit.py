"""Train the bias terms and the head, a thousandth of the numbers: Ben Zaken et al. (2022), BitFit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.inspect import anatomy, outline
from chainrule.strategies.base import Phase, decayed_groups


class Options(Section):
    """`bitfit` has no options."""


class BitFit:
    """Every bias is trained, those of norms included, and a classifier's head whole; all other weights stay."""

    default_learning_rate = 1e-3
    width_exponent = 0.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """One phase.

        Raises:
            RecipeError: there is no bias below the head, as in models of Llama's kind.
        """
        head = set(anatomy(model).head)
        names = [name for name, _ in model.named_parameters() if name in head or "bias" in name.rpartition(".")[2]]
        if head.issuperset(names):
            problem = Problem(
                where=Where(field="strategy.name"),
                expected="a model with bias terms below its head",
                got=f"a {model.config.model_type} without any: {', '.join(outline(model))}",
                todo="Use --strategy lora, which also trains few numbers, or --strategy partial.",
            )
            raise RecipeError("This model has nothing for bitfit to train.", [problem])
        return [Phase(0, decayed_groups(model, names, optimizer))]

    def finish(self, model: Any) -> Any:
        return model
