"""The shelf of strategies: name -> (options, class), one file per way to fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chainrule.core import shelf
from chainrule.core.recipe import Spec, unknown_name
from chainrule.core.task import Task
from chainrule.errors import Problem, RecipeError, Where
from chainrule.strategies import (
    bitfit,
    contrastive,
    dora,
    full,
    gradual,
    head,
    hybrid,
    ia3,
    lora,
    partial,
    prompt,
    qlora,
)
from chainrule.strategies.adapted import LowRank
from chainrule.strategies.base import Strategy


def _fits(task: Task) -> None:
    """There is no task that it does not fit."""


@dataclass(frozen=True)
class Entry(shelf.Entry):
    """One line of the shelf.

    Attributes:
        misfit: why a task does not go together with the strategy; None where it does.
    """

    make: type[Any]
    misfit: Callable[[Task], str | None] = _fits


STRATEGIES: dict[str, Entry] = {
    "full": Entry(full.Options, full.Full, "trains every parameter"),
    "partial": Entry(
        partial.Options,
        partial.Partial,
        "trains some layers and the head (options: top, first, parameters, embeddings)",
    ),
    "head": Entry(head.Options, head.Head, "trains the head alone on frozen features", head.misfit),
    "bitfit": Entry(bitfit.Options, bitfit.BitFit, "trains the bias terms and the head"),
    "gradual": Entry(
        gradual.Options,
        gradual.Gradual,
        "trains the head first, then one layer more after another (options: until, layers)",
        gradual.misfit,
    ),
    "lora": Entry(
        LowRank,
        lora.Lora,
        "trains low-rank adapters, and a classifier's head (options: rank, alpha, dropout, targets, merge)",
    ),
    "dora": Entry(
        LowRank,
        dora.Dora,
        "as lora, with the length of each row of a weight trained apart (options: as lora)",
    ),
    "qlora": Entry(
        LowRank,
        qlora.QLora,
        "as lora, on weights held in int8 (CPU) or nf4 (CUDA, with bitsandbytes; options: as lora)",
    ),
    "ia3": Entry(
        ia3.Options,
        ia3.Ia3,
        "trains vectors that scale keys, values and feed-forward parts, and a head (options: targets, merge)",
    ),
    "hybrid": Entry(
        hybrid.Options, hybrid.Hybrid, "trains each group of layers in its own way (options: groups, rank, alpha)"
    ),
    "prompt": Entry(
        prompt.Options,
        prompt.Prompt,
        "trains a few vectors before every text, and a classifier's head (option: tokens)",
        prompt.misfit,
    ),
    "contrastive": Entry(
        contrastive.Options,
        contrastive.Contrastive,
        "for few rows: draws those of a class together, then trains the head (options: temperature, share, "
        "head_factor)",
        contrastive.misfit,
    ),
}


def make_strategy(spec: Spec, field: str = "strategy") -> Strategy:
    """The strategy that a recipe names, with its options checked.

    Args:
        field: where in the recipe it is named.

    Raises:
        RecipeError: no such strategy, or options it does not have.
    """
    strategy: Strategy = shelf.take(STRATEGIES, spec, "strategy", (f"{field}.name", f"{field}.options"))()
    return strategy


def refuse_misfit(name: str, task: Task) -> None:
    """Make sure that a strategy goes together with a task.

    Raises:
        RecipeError: it does not; the message says why and lists those that do. Or there is no such strategy.
    """
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, tuple(STRATEGIES))
    reason = STRATEGIES[name].misfit(task)
    if reason is None:
        return
    problem = Problem(
        where=Where(field="strategy.name"),
        expected=f"one of {', '.join(other for other, entry in STRATEGIES.items() if entry.misfit(task) is None)}",
        got=f"{name!r}: {reason}",
        todo="Choose one of these; `chainrule show strategies` tells what goes together.",
    )
    raise RecipeError(f"The strategy {name!r} does not go together with {task.name}.", [problem])


def reserved_tokens(strategy: Strategy) -> int:
    """Positions that a strategy takes before every row."""
    return strategy.options.tokens if isinstance(strategy, prompt.Prompt) else 0


def describe(tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """What `show strategies` tells: under "tasks" why each does not fit, or None where it does."""
    return [
        {
            **row,
            "default_learning_rate": STRATEGIES[row["name"]].make.default_learning_rate,
            "tasks": {task.name: STRATEGIES[row["name"]].misfit(task) for task in tasks.values()},
        }
        for row in shelf.describe(STRATEGIES)
    ]
