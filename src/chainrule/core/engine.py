"""Who does the work, where it is not this process."""

from __future__ import annotations

import os
from dataclasses import dataclass

from chainrule.errors import Problem, RecipeError, Where

ENGINES = ("ray",)
ADDRESS = "RAY_ADDRESS"


@dataclass(frozen=True)
class Engine:
    """An engine by its name.

    It stands in no recipe: what is trained does not depend on who trains it.

    Attributes:
        workers: how many; None for one a GPU, or else one a machine.

    Raises:
        RecipeError: there is no such engine, or no worker.
    """

    name: str
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            todo = "Leave it out for this process alone."
            problem = Problem(f"one of {', '.join(ENGINES)}", repr(self.name), todo, Where(field="engine"))
            raise RecipeError(f"There is no engine {self.name!r}.", [problem])
        if self.workers is not None and self.workers < 1:
            problem = Problem("1 worker or more", str(self.workers), "Change it.", Where(field="workers"))
            raise RecipeError("There must be a worker.", [problem])


def outside_address() -> str | None:
    """The cluster's address for jobs, where RAY_ADDRESS is one: commands are submitted there; else None."""
    address = os.environ.get(ADDRESS, "")
    return address if address.startswith(("http://", "https://")) else None
