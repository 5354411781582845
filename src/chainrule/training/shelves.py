"""Every shelf that a recipe chooses from, for whoever asks what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.core.shelf import Entry, describe
from chainrule.strategies import describe as describe_strategies
from chainrule.tasks import TASKS
from chainrule.tasks import describe as describe_task
from chainrule.training.averaging import AVERAGES
from chainrule.training.optimizers import OPTIMIZERS
from chainrule.training.regularisers import REGULARISERS
from chainrule.training.schedules import SCHEDULES

_SHELVES: dict[str, Mapping[str, Entry]] = {
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "regularisers": REGULARISERS,
    "averages": AVERAGES,
}


def rows_of(shelf: str) -> list[dict[str, Any]]:
    """The parts of a shelf, one of `api.SHOWN` but the catalog, as plain JSON values."""
    if shelf == "tasks":
        return [describe_task(task) for task in TASKS.values()]
    if shelf == "strategies":
        return describe_strategies(TASKS)
    if shelf == "losses":
        return [{**row, "task": task.name} for task in TASKS.values() for row in describe(task.losses)]
    return describe(_SHELVES[shelf])
