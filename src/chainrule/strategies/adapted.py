"""What the strategies with adapters share: which layers get one, what is trained, and whether it is merged at last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers.pytorch_utils import Conv1D

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import (
    adapter_parameters,
    endings,
    head_modules,
    kind_of,
    linear_modules,
    peft_library,
    put_on,
    refuse_alone,
)
from chainrule.strategies.base import Phase, decayed_groups

Tell = Callable[[str], None]


class LowRank(Section):
    """What low-rank adapters are.

    Attributes:
        rank: columns of A and rows of B in the update B·A of a weight.
        alpha: the update counts alpha / rank times; null means 2 · rank.
        dropout: on the adapters' inputs.
        targets: "all-linear" for every linear layer below the head, or a list of module name endings.
        merge: save the base model with the adapters added to its weights (true) or the adapters alone (false). Null
            means alone where the base model has a name on the hub, so that others can get it.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    merge: bool | None = None


def put_low_rank(model: Any, options: LowRank, purpose: str, tell: Tell, **more: Any) -> tuple[Any, LowRank]:
    """The model with low-rank adapters on it, and the options with what was chosen for those left open.

    Args:
        purpose: what needs PEFT, for its error.
        more: further settings of peft.LoraConfig.

    Raises:
        RecipeError: targets that the model does not have.
        MissingExtraError: PEFT is not installed.
    """
    peft = peft_library(purpose)
    names = targets_of(linear_modules(model), options.targets)
    alpha = options.alpha if options.alpha is not None else 2.0 * options.rank
    chosen = options.model_copy(update={"alpha": alpha, "merge": choose_merge(model, options.merge, tell)})
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=alpha,
        lora_dropout=options.dropout,
        bias="none",
        **adapter_settings(model, names),
        **more,
    )
    return put_on(model, config), chosen


def adapter_settings(model: Any, names: Collection[str]) -> dict[str, Any]:
    """What PEFT's configurations of adapters on linear layers have in common."""
    modules = linear_modules(model)
    return {
        "target_modules": list(names),
        "modules_to_save": list(head_modules(model)) or None,
        "fan_in_fan_out": any(isinstance(modules[name], Conv1D) for name in names),
        "task_type": kind_of(model),
    }


def targets_of(modules: Collection[str], wanted: str | Sequence[str]) -> list[str]:
    """The names among `modules` with one of the wanted endings; all of them for "all-linear".

    Raises:
        RecipeError: an ending that no name has, or no names at all.
    """
    if not modules:
        problem = Problem(
            "a model with linear layers below its head", "none", "Use --strategy full.", Where(field="strategy.name")
        )
        raise RecipeError("The model has no layers to put adapters on.", [problem])
    if wanted == "all-linear":
        return list(modules)
    chosen = {ending: [name for name in modules if name == ending or name.endswith(f".{ending}")] for ending in wanted}
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


def choose_merge(model: Any, asked: bool | None, tell: Tell) -> bool:
    """Whether the adapters are merged in the end: as asked, else where the base model has no name on the hub."""
    is_changed = not model.name_or_path
    is_local = is_changed or Path(model.name_or_path).exists()
    merge = is_local if asked is None else asked
    if not merge:
        refuse_alone(model)
    told = "The adapters will be merged into the changed model."
    tell(told if is_changed else _what_is_saved(merge, is_local, asked=asked is not None))
    return merge


def adapter_phases(model: Any, optimizer: Optimizer) -> list[Phase]:
    """One phase, which trains the adapters and what is saved whole beside them."""
    return [Phase(0, decayed_groups(model, adapter_parameters(model), optimizer))]


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
