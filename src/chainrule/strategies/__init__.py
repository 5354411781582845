"""The shelf of strategies: name -> (options, class), one file per way to fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chainrule.core.recipe import Section, Spec, parse_options, unknown_name
from chainrule.strategies import full, head, lora, partial
from chainrule.strategies.base import Strategy


@dataclass(frozen=True)
class Entry:
    """One line of the shelf."""

    options: type[Section]
    make: Any
    summary: str


STRATEGIES: dict[str, Entry] = {
    "full": Entry(full.Options, full.Full, "trains every parameter"),
    "partial": Entry(partial.Options, partial.Partial, "trains the top layers and the head (option: top)"),
    "head": Entry(head.Options, head.Head, "trains the head alone on frozen features"),
    "lora": Entry(
        lora.Options,
        lora.Lora,
        "trains low-rank adapters, and a classifier's head (options: rank, alpha, dropout, targets, merge)",
    ),
}


def make_strategy(spec: Spec) -> Strategy:
    """The strategy that a recipe names, with its options checked.

    Raises:
        RecipeError: no such strategy, or options it does not have.
    """
    if spec.name not in STRATEGIES:
        raise unknown_name("strategy", spec.name, tuple(STRATEGIES))
    entry = STRATEGIES[spec.name]
    strategy: Strategy = entry.make(parse_options(entry.options, spec, "strategy"))
    return strategy
