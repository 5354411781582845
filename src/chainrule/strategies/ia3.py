"""Vectors that scale keys, values and what the feed-forward part passes on, through PEFT: Liu et al. (2022), (IA)³."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.pytorch_utils import Conv1D

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import endings, linear_modules, merged, peft_library, put_on
from chainrule.strategies.adapted import adapter_phases, adapter_settings, choose_merge, targets_of
from chainrule.strategies.base import Phase

# What the families call the layers that make keys and values; then those that make queries with them.
_APART = ("key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "key_proj", "value_proj", "k", "v")
_TOGETHER = ("query_key_value", "qkv_proj", "c_attn", "Wqkv")


class Options(Section):
    """Where the vectors act.

    Attributes:
        targets: module name endings of linear layers; null for keys, values and the layers that leave the feed-forward
            parts. A layer that reads more numbers than a token's state has is scaled at its input, others at their
            output.
        merge: save the base model with the vectors multiplied into its weights (true) or the vectors alone (false).
            Null means alone where the base model has a name on the hub.
    """

    targets: tuple[str, ...] | None = None
    merge: bool | None = None


class Ia3:
    """A vector per adapted layer is trained, and a classifier's head: a few thousand numbers in all."""

    default_learning_rate = 3e-3
    width_exponent = 0.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Put the vectors on the model; from then on the options say whether they will be merged.

        Raises:
            RecipeError: targets that the model does not have, or keys and values that cannot be told by name.
            MissingExtraError: PEFT is not installed.
        """
        peft = peft_library("The strategy 'ia3'")
        modules = linear_modules(model)
        state = model.config.get_text_config().hidden_size
        wide = [name for name, layer in modules.items() if _inputs(layer) > state]
        if self.options.targets is None:
            names = [*_keys_and_values(list(modules)), *wide]
        else:
            names = targets_of(modules, self.options.targets)
        merge = choose_merge(model, self.options.merge, tell)
        self.options = self.options.model_copy(update={"merge": merge})
        at_input = [name for name in names if name in wide]
        return put_on(model, peft.IA3Config(feedforward_modules=at_input, **adapter_settings(model, names)))

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """One phase. Nothing is decayed: a factor of 1 is what leaves the model as it was, not one of 0."""
        return adapter_phases(model, optimizer.model_copy(update={"weight_decay": 0.0}))

    def finish(self, model: Any) -> Any:
        return merged(model) if self.options.merge else model


def _inputs(layer: Any) -> int:
    return int(layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.in_features)


def _keys_and_values(modules: list[str]) -> list[str]:
    for known in (_APART, _TOGETHER):
        names = [name for name in modules if name.rpartition(".")[2] in known]
        if names:
            return names
    problem = Problem(
        where=Where(field="strategy.options.targets"),
        expected=f"endings of names of linear layers: {', '.join(endings(modules))}",
        got="null, and no layers named like keys and values",
        todo="Name the layers that make keys and values, and the last one of the feed-forward part.",
    )
    raise RecipeError("The model's keys and values cannot be told from other layers.", [problem])
