"""The shelf of strategies: name -> (options, class), one file per way to fine-tune."""

from __future__ import annotations

from chainrule.core.recipe import Spec
from chainrule.core.shelf import Entry, take
from chainrule.strategies import full, head, lora, partial
from chainrule.strategies.base import Strategy

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
    strategy: Strategy = take(STRATEGIES, spec, "strategy")()
    return strategy
