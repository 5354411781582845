"""Low-rank adapters on weights held in few bits: Dettmers et al. (2023), QLoRA; in int8 on a CPU, in nf4 on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chainrule.core.recipe import Optimizer
from chainrule.models.adapters import merged
from chainrule.models.quantized import hold, widen
from chainrule.strategies.adapted import LowRank, adapter_phases, put_low_rank
from chainrule.strategies.base import Phase


class QLora:
    """As `lora`, with the frozen linear layers in a quarter (int8) or an eighth (nf4) of the memory of float32."""

    default_learning_rate = 6e-4
    width_exponent = 0.5

    def __init__(self, options: LowRank) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Round the linear layers and put adapters on them; from then on the options say what was chosen.

        Raises:
            RecipeError: targets that the model does not have, or weights that cannot be rounded here.
            MissingExtraError: PEFT is not installed, or bitsandbytes on CUDA.
        """
        before, after = hold(model)
        tell(f"The frozen linear layers take {after / 1e6:,.0f} MB instead of {before / 1e6:,.0f}.")
        model, self.options = put_low_rank(model, self.options, "The strategy 'qlora'", tell)
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        return adapter_phases(model, optimizer)

    def finish(self, model: Any) -> Any:
        if not self.options.merge:
            return model
        widen(model)
        return merged(model)
