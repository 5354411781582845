"""What readers of ranking data need beside the files that are changed: items, and fitted baselines."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from chainrule.core.recipe import Data
from chainrule.data.load import load
from chainrule.evaluation.baseline_files import ARRAYS, TEXT
from chainrule.evaluation.rankers import Rankers
from chainrule.tasks import find_task
from chainrule.testing.data import tastes, write_csv
from chainrule.testing.hostile import Target


def catalogue(folder: Path) -> None:
    """Items beside rows that name them."""
    write_csv(folder / "items.csv", [{"item_id": f"i{number}", "text": f"film {number}"} for number in range(6)])


def rankers(folder: Path) -> list[Target]:
    """Readers of the baselines of ranking."""
    task = find_task("ranking")
    splits = load(tastes(folder / "rows", users=8), Data(), task).splits
    train, validation = ((splits[name].inputs, splits[name].targets) for name in ("train", "validation"))
    Rankers.fit(task, train, validation, seed=0).save(folder)
    files = {name: (folder / name).read_bytes() for name in (TEXT, ARRAYS)}

    def reader(name: str) -> Callable[[bytes, random.Random], None]:
        def read(data: bytes, choose: random.Random) -> None:
            for other, content in files.items():
                (folder / other).write_bytes(data if other == name else content)
            Rankers.load(folder).predict(validation[0])

        return read

    return [
        Target("rankers", (files[TEXT],), reader(TEXT), cost=3),
        Target("ranker-arrays", (files[ARRAYS],), reader(ARRAYS), cost=3),
    ]
