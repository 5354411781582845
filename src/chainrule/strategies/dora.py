"""Low-rank adapters that turn a weight, and a vector that stretches it, through PEFT: Liu et al. (2024), DoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chainrule.core.recipe import Optimizer
from chainrule.models.adapters import merged
from chainrule.strategies.adapted import LowRank, adapter_phases, put_low_rank
from chainrule.strategies.base import Phase


class Dora:
    """As `lora`, and the length of each row of a weight is trained apart from its direction."""

    default_learning_rate = 6e-4
    width_exponent = 0.5

    def __init__(self, options: LowRank) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Put adapters on the model; from then on the options say what was chosen for those left open.

        Raises:
            RecipeError: targets that the model does not have.
            MissingExtraError: PEFT is not installed.
        """
        model, self.options = put_low_rank(model, self.options, "The strategy 'dora'", tell, use_dora=True)
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        return adapter_phases(model, optimizer)

    def finish(self, model: Any) -> Any:
        return merged(model) if self.options.merge else model
