"""Low-rank adapters (Hu et al., 2021, LoRA), through PEFT: the pretrained weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers.pytorch_utils import Conv1D

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import endings, head_modules, linear_modules, peft_library, put_on
from chainrule.strategies.base import Phase, decayed_groups

_TRAINED = (".lora_A.", ".lora_B.", ".modules_to_save.")


class Options(Section):
    """What the adapters are.

    Attributes:
        rank: columns of A and rows of B in the update B·A of a weight.
        alpha: the update counts alpha / rank times; null means 2 · rank.
        dropout: on the adapters' inputs.
        targets: "all-linear" for every linear layer below the head, or a list of module name endings.
        merge: save the base model with the adapters added to its weights (true) or the adapters alone (false). Null
            means alone where the base model has a name on the hub, so that others can get it.
    """

    rank: int = Field(default=16, ge=1, le=65_536)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    merge: bool | None = None


class Lora:
    """Adapters on the linear layers are trained, and a classifier's head with them."""

    default_learning_rate = 2e-4

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Put adapters on the model; from then on the options say what was chosen for those left open.

        Raises:
            RecipeError: targets that the model does not have.
            MissingExtraError: PEFT is not installed.
        """
        peft = peft_library("The strategy 'lora'")
        names = self._targets(model)
        options = self.options
        alpha = options.alpha if options.alpha is not None else 2.0 * options.rank
        is_local = Path(model.name_or_path).exists()
        merge = is_local if options.merge is None else options.merge
        self.options = options.model_copy(update={"alpha": alpha, "merge": merge})
        tell(_what_is_saved(merge, is_local, asked=options.merge is not None))
        modules = linear_modules(model)
        config = peft.LoraConfig(
            r=options.rank,
            lora_alpha=alpha,
            lora_dropout=options.dropout,
            target_modules=names,
            modules_to_save=list(head_modules(model)) or None,
            fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in names),
            bias="none",
            task_type="CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS",
        )
        return put_on(model, config)

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        names = [name for name, _ in model.named_parameters() if any(part in name for part in _TRAINED)]
        return [Phase(0, decayed_groups(model, names, optimizer))]

    def finish(self, model: Any) -> Any:
        return model.merge_and_unload() if self.options.merge else model

    def _targets(self, model: Any) -> list[str]:
        modules = linear_modules(model)
        if self.options.targets == "all-linear":
            return list(modules)
        chosen = {
            ending: [name for name in modules if name == ending or name.endswith(f".{ending}")]
            for ending in self.options.targets
        }
        missing = [ending for ending, names in chosen.items() if not names]
        if missing or not chosen:
            problem = Problem(
                where=Where(field="strategy.options.targets"),
                expected=f"endings of names of linear layers: {', '.join(endings(list(modules)))}",
                got=", ".join(map(repr, missing)) or "none",
                todo="Choose among these, or leave it at all-linear.",
            )
            raise RecipeError("The model has no such layers to put adapters on.", [problem])
        return sorted({name for names in chosen.values() for name in names})


def _what_is_saved(merge: bool, is_local: bool, *, asked: bool) -> str:
    if merge and asked:
        return "The adapters will be merged: the artifact is a whole model that plain transformers loads."
    if merge:
        return (
            "The base model has no name on the hub by which others could get it, so the adapters will be merged into "
            "it: the artifact is a whole model that plain transformers loads. "
            "(--set strategy.options.merge=false saves the adapters alone.)"
        )
    alone = "The artifact will be the adapters alone, which PEFT loads on top of the base model"
    return f"{alone}; whoever uses it needs the same base model." if is_local else f"{alone} from the hub."
