"""What is left of fine-tuned models once they are made smaller: scores with intervals, then speeds in turn.

`make` fine-tunes minilm on each data set and makes what `chainrule compress` and `merge` make of it, with limits opened
wide so that everything is seen; each outcome is a line of benchmarks/results/smaller.jsonl, and one that is there is
not made again. `time` lets all that lies in the folder read the same test rows in turn, beside the libraries' own ways.

    python benchmarks/smaller.py make --data trec stsb --folder /tmp/smaller
    python benchmarks/smaller.py time --data trec stsb --folder /tmp/smaller --rounds 5
    python benchmarks/smaller.py report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chainrule
from chainrule.api.exporting import rows_of_split
from chainrule.core.artifact import Artifact, Parity, Run
from chainrule.core.recipe import read_recipe
from chainrule.core.request import Limits
from chainrule.evaluation.parity import compare
from chainrule.inference.predict import load_predictor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import WORKLOADS

RESULTS = HERE / "results" / "smaller.jsonl"
EPOCHS = {"trec": 3, "stsb": 4, "banking77": 5, "conll2003pp": 3, "sst2": 2}
SEEDS = 3
WIDE: Limits = {"loss": 100.0, "worst": 100.0, "allow_slower": True}
READS_ROWS = ("trec", "banking77", "sst2")  # an LSTM learns these


@dataclass(frozen=True)
class Place:
    """Where the models of one data set lie, and the data."""

    data: str
    home: Path

    @property
    def source(self) -> str:
        return str(WORKLOADS[self.data].folder)

    def teacher(self, seed: int = 0) -> Run:
        return Run(self.home / f"teacher-{seed}")

    def __truediv__(self, name: str) -> Path:
        return self.home / name


def between(before: Artifact, after: Artifact, place: Place) -> Parity:
    """Two models on the test rows, paired."""
    first, second = load_predictor(before), load_predictor(after)
    rows = rows_of_split(first, place.source, "test")
    return compare(first, second, rows)


def train_teacher(place: Place, seed: int) -> Parity:
    settings = {
        "task": WORKLOADS[place.data].task,
        "model": {"name": "minilm", "max_length": WORKLOADS[place.data].max_length},
        "training.epochs": EPOCHS[place.data],
        "seed": seed,
    }
    run = chainrule.train(place.source, out=place / f"teacher-{seed}", settings=settings)
    return between(run.artifact, run.artifact, place)


def compressed(place: Place, name: str, of: Artifact | Run, to: str, **options: Any) -> Parity:
    _, done = chainrule.compress(of, place / name, to=to, data=place.source, options=options, **WIDE)
    return done.parity


def student(place: Place, name: str, kind: str, **settings: Any) -> Parity:
    _, done = chainrule.distill(
        place.teacher(), kind, place / name, data=place.source, kept=1e-6, allow_slower=True, settings=settings
    )
    return done.parity


def alone(place: Place, taught: str) -> Parity:
    """The same student, from the same start, with the same settings and rows, without a teacher; what it loses."""
    recipe = read_recipe(place / taught / "recipe.yaml").replace(
        {"distillation.teachers": [], "distillation.unlabelled": None}
    )
    out = place / f"{taught}-alone"
    chainrule.train(recipe=recipe, out=out)
    return between(Run(place / taught).artifact, Run(out).artifact, place)


def soup(place: Place, method: str) -> Parity:
    _, done = chainrule.merge(
        [place.teacher(seed) for seed in range(SEEDS)], place / method, method=method, data=place.source,
        loss=100.0, worst=100.0,
    )  # fmt: skip
    return done.parity


def steps_of(place: Place) -> dict[str, Callable[[], Parity]]:
    """Everything that is made for one data set, in order."""
    found: dict[str, Callable[[], Parity]] = {"teacher-0": lambda: train_teacher(place, 0)}
    found["int8"] = lambda: compressed(place, "int8", place.teacher(), "int8")
    found["prune 60 %"] = lambda: compressed(place, "prune", place.teacher(), "prune", share=0.6)
    found["3 layers"] = lambda: student(place, "three", "self:3")
    found["3 layers, no teacher"] = lambda: alone(place, "three")
    found["3 layers, int8"] = lambda: compressed(place, "three-int8", Run(place / "three"), "int8")
    if place.data in READS_ROWS:
        found["lstm"] = lambda: student(place, "lstm", "lstm")
        found["lstm, no teacher"] = lambda: alone(place, "lstm")
    for seed in range(1, SEEDS):
        found[f"teacher-{seed}"] = partial(train_teacher, place, seed)
    found["average"] = lambda: soup(place, "average")
    found["greedy"] = lambda: soup(place, "greedy")
    return found


def results() -> list[dict[str, Any]]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return [json.loads(line) for line in lines]


def add(line: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def make(data: Sequence[str], folder: Path, only: Sequence[str] | None) -> None:
    known = {(line["data"], line["step"]) for line in results() if "metric" in line}
    for name in data:
        place = Place(name, folder / name)
        place.home.mkdir(parents=True, exist_ok=True)
        for step, act in steps_of(place).items():
            if (name, step) in known or (only and step not in only):
                continue
            began = time.perf_counter()
            found = act()
            kept = found.model_dump(include={"metric", "before", "after", "difference", "low", "high", "rows"})
            line = {"data": name, "step": step, **kept, "seconds": round(time.perf_counter() - began, 1)}
            add(line)
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "time", "report"])
    parser.add_argument("--data", nargs="+", default=list(EPOCHS))
    parser.add_argument("--folder", type=Path, default=Path("runs/smaller"))
    parser.add_argument("--only", nargs="+", help="of these steps alone")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "make":
        make(options.data, options.folder, options.only)


if __name__ == "__main__":
    main()
