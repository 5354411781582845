"""The shelf of regularisers: each is an objective around another objective, one file per idea.

Whatever their order in a recipe, they go around the task's objective in the order of the table, the first innermost:
what changes the forward pass inside, penalties of the weights outside. Each gives sums over rows, so a step's gradient
is the same however its batch is cut into micro-batches, random masks aside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from chainrule.core.recipe import Spec
from chainrule.core.shelf import Entry, Part, take
from chainrule.core.task import Objective
from chainrule.training.regularisers import fgm, mixout, penalties, r_drop, rounding

KEY = "regularisers"

REGULARISERS: dict[str, Entry] = {
    "r-drop": Entry(r_drop.Options, r_drop.RDrop, "two dropout masks shall give the same answer; twice the work"),
    "fgm": Entry(
        fgm.Options, fgm.FGM, "learns each row again with its word embeddings moved against it; twice the work"
    ),
    "mixout": Entry(mixout.Options, mixout.Mixout, "linear weights go back to the pretrained ones at random"),
    "rounding": Entry(
        rounding.Options, rounding.Rounding, "linear layers compute with few bits (quantisation-aware training)"
    ),
    "l1": Entry(penalties.Options, penalties.l1, "the size of the trained weights"),
    "l2": Entry(penalties.Options, penalties.l2, "half the square of the trained weights"),
    "l2-sp": Entry(penalties.Options, penalties.l2_sp, "half the squared distance from the pretrained weights"),
}


def take_regularisers(asked: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """The regularisers of a recipe (name -> options), the innermost first.

    Raises:
        RecipeError: no such regulariser, or options it does not have.
    """
    parts = {
        name: take(REGULARISERS, Spec(name=name, options=dict(options)), "regulariser", (KEY, f"{KEY}.{name}"))
        for name, options in asked.items()
    }
    return [parts[name] for name in REGULARISERS if name in parts]


def regularised(
    objective: Objective, asked: Mapping[str, Mapping[str, Any]], model: Any, trained: Collection[str]
) -> Objective:
    """An objective with the regularisers of a recipe around it.

    Args:
        model: with the weights of before step one, which some regularisers keep.
        trained: names of the parameters that any phase trains.

    Raises:
        RecipeError: as `take_regularisers`, or one that this task or model cannot use.
    """
    for part in take_regularisers(asked):
        objective = part(objective, model, trained)
    return objective


def reads_embeddings(asked: Collection[str]) -> bool:
    """Whether one of the regularisers works on the word embeddings of every batch."""
    return "fgm" in asked
