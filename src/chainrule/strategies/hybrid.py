"""A table of groups: these layers whole, those with low-rank adapters, those frozen, each at its own rate and time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from transformers.pytorch_utils import Conv1D

from chainrule.core.recipe import Optimizer, Section
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import endings, has_adapters, linear_modules, merged, peft_library, put_on
from chainrule.models.inspect import Anatomy, anatomy, matching, outline
from chainrule.strategies.base import ParameterGroup, Phase, decayed_groups

LORA_FACTOR = 4.0  # fresh adapters bear this much more than pretrained weights, as the defaults of `lora` and `full` do


class Group(Section):
    """A line of the table.

    Attributes:
        layers: numbers from the bottom ("0-3" or "4"), "first:2", "top:2", "embeddings", "head", or a pattern of
            parameter names.
        method: "full" trains the parameters, "lora" puts low-rank adapters on the linear layers among them, "frozen"
            leaves them as they are.
        learning_rate: null for the recipe's, with "lora" four times that.
        weight_decay: null for the recipe's.
        start: share of the steps before this group is trained.
    """

    layers: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
    method: Literal["frozen", "lora", "full"]
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    start: float = Field(default=0.0, ge=0, lt=1)


class Options(Section):
    """The table, and the adapters.

    Attributes:
        groups: the last one that names a parameter decides about it. What none names is frozen; a head that none
            names is trained. Null: the bottom third frozen, the middle third with adapters, the top third whole.
        rank: of the adapters.
        alpha: their update counts alpha / rank times; null means 2 · rank.
    """

    groups: tuple[Group, ...] | None = None
    rank: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0)


class Hybrid:
    """Groups of layers, each trained in its own way. Adapters are merged in the end, so that the artifact is plain."""

    default_learning_rate = 3e-4
    width_exponent = 1.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Put adapters where the table wants some; from then on the options hold the whole table.

        Raises:
            RecipeError: lines that name nothing of this model, or nothing that could be done; all of them at once.
            MissingExtraError: the table wants adapters, and PEFT is not installed.
        """
        parts, options = anatomy(model), self.options
        groups = _thirds(len(parts.layers)) if options.groups is None else options.groups
        if not set(parts.head) <= _table(model, groups).keys():
            groups = (Group(layers="head", method="full"), *groups)
        targets = _targets(model, groups)
        problems = _problems(model, groups, set(targets.values()))
        if problems:
            raise RecipeError("The table of groups does not fit this model.", problems)
        alpha = options.alpha if options.alpha is not None else 2.0 * options.rank
        self.options = options.model_copy(update={"groups": groups, "alpha": alpha})
        if not targets:
            return model
        peft = peft_library("The strategy 'hybrid' with adapters")
        modules = linear_modules(model)
        return put_on(
            model,
            peft.LoraConfig(
                r=options.rank,
                lora_alpha=alpha,
                target_modules=list(targets),
                fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in targets),
            ),
        )

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """One phase for each step at which some group begins."""
        groups, table = self.options.groups or (), _table(model, self.options.groups or ())
        begin: dict[int, tuple[ParameterGroup, ...]] = {}
        for number, group in enumerate(groups):
            wanted = _WANTED[group.method]
            names = [name for name, line in table.items() if line == number and wanted(name)]
            start = round(group.start * steps)
            begin[start] = (*begin.get(start, ()), *decayed_groups(model, names, _rates(group, optimizer)))
        trained: tuple[ParameterGroup, ...] = ()
        phases = []
        for start in sorted(start for start, fresh in begin.items() if fresh and start < steps):
            trained = (*trained, *begin[start])
            phases.append(Phase(start, trained))
        return phases

    def finish(self, model: Any) -> Any:
        return merged(model) if has_adapters(model) else model


# Which of the parameters that belong to a group its method trains.
_WANTED: dict[str, Callable[[str], bool]] = {
    "frozen": lambda name: False,
    "lora": lambda name: ".lora_" in name,
    "full": lambda name: ".lora_" not in name,
}


def _thirds(layers: int) -> tuple[Group, ...]:
    """The table where none is given; a part of it that has no layers is left out."""
    third = layers // 3
    top = max(third, 1)
    table = [
        Group(layers="embeddings", method="frozen"),
        Group(layers=f"first:{third}", method="frozen"),
        Group(layers=f"{third}-{layers - top - 1}", method="lora"),
        Group(layers=f"top:{top}", method="full"),
    ]
    counts = (1, third, layers - top - third, top)
    return tuple(group for group, count in zip(table, counts, strict=True) if count)


def _layers(text: str, there: int) -> range | None:
    """The layers that a text names by number; None where it is a text of another kind."""
    if found := re.fullmatch(r"(\d+)(?:-(\d+))?", text):
        return range(int(found[1]), int(found[2] or found[1]) + 1)
    if found := re.fullmatch(r"(first|top):(\d+)", text):
        count = int(found[2])
        return range(count) if found[1] == "first" else range(there - count, there)
    return None


def _named(model: Any, parts: Anatomy, text: str) -> Sequence[str]:
    """The parameters that one line names; none where the model has no such layers."""
    if text in ("embeddings", "head"):
        return parts.embeddings if text == "embeddings" else parts.head
    numbers = _layers(text, len(parts.layers))
    if numbers is None:
        return matching(model, text)
    return [name for number in numbers if 0 <= number < len(parts.layers) for name in parts.layers[number]]


def _table(model: Any, groups: Sequence[Group]) -> dict[str, int]:
    """Parameter -> number of the last group that names it, in the order of the model's parameters."""
    parts = anatomy(model)
    lines = {name: number for number, group in enumerate(groups) for name in _named(model, parts, group.layers)}
    return {name: lines[name] for name, _ in model.named_parameters() if name in lines}


def _targets(model: Any, groups: Sequence[Group]) -> dict[str, int]:
    """The linear layers that get adapters -> number of the group that wants them."""
    table = _table(model, groups)
    found = {name: table.get(f"{name}.weight") for name in linear_modules(model)}
    return {name: line for name, line in found.items() if line is not None and groups[line].method == "lora"}


def _rates(group: Group, optimizer: Optimizer) -> Optimizer:
    """The optimizer's numbers for one group."""
    if optimizer.learning_rate is None:
        raise ValueError("the learning rate must be resolved before the parameter groups are made")
    own = optimizer.learning_rate * (LORA_FACTOR if group.method == "lora" else 1.0)
    decay = optimizer.weight_decay if group.weight_decay is None else group.weight_decay
    return optimizer.model_copy(update={"learning_rate": group.learning_rate or own, "weight_decay": decay})


def _problems(model: Any, groups: Sequence[Group], with_targets: set[int]) -> list[Problem]:
    """Everything in the table that cannot be done with this model."""
    parts, left = anatomy(model), set(_table(model, groups).values())
    problems = []
    for number, group in enumerate(groups):
        there = len(parts.layers)
        numbers = _layers(group.layers, there)
        got, expected = repr(group.layers), ""
        if numbers is not None and not (numbers and numbers.start >= 0 and numbers.stop <= there):
            expected = f"layers from 0 to {there - 1}, which this model has"
        elif not _named(model, parts, group.layers):
            expected = (
                f"numbers of layers, first:N, top:N, embeddings, head, or a pattern of {', '.join(outline(model))}"
            )
        elif number not in left:
            expected, got = "parameters that no later group names", f"{got}, all of which later groups name"
        elif group.method == "lora" and number not in with_targets:
            expected = f"linear layers below the head for adapters: {', '.join(endings(list(linear_modules(model))))}"
            got = f"{got}, which has none"
        elif group.method == "frozen" and (group.learning_rate or group.weight_decay or group.start):
            expected, got = "a frozen group without learning_rate, weight_decay and start", f"{got} with one of them"
        if expected:
            where = Where(field=f"strategy.options.groups.{number}")
            problems.append(Problem(expected, got, "Correct this group.", where))
    trained = [group for group in groups if group.method != "frozen"]
    if not any(group.start == 0 for group in trained):
        got = f"the first at {min(group.start for group in trained):g} of the steps" if trained else "none"
        where = Where(field="strategy.options.groups")
        problems.append(Problem("a group that is trained from the first step", got, "Let one start at 0.", where))
    return problems
