"""What watching gradients costs: the same training with and without it, in one process, taking turns.

A turn is as many steps as lie between two looks, of each; its cost is the processor time of the watched steps over that
of the others, less one. Prints the median of the turns and the quartiles, and the same in wall time.

    python benchmarks/watching.py
    python benchmarks/watching.py --data sst2 --model minilm --turns 12
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

from workloads import DATA

from chainrule.core.recipe import parse_recipe
from chainrule.system.progress import Quiet
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training.checkpoint import Standing
from chainrule.training.loop import Step
from chainrule.training.resolve import resolve
from chainrule.training.run import prepare_job
from chainrule.training.shortage import steps_in_memory
from chainrule.training.trainer import settle_formats, watching
from chainrule.training.watch import EVERY


def steps_of(data: str, model: str, *, watch: bool, turns: int) -> Iterator[Step]:
    """The steps of one training."""
    count, threads = EVERY * (turns + 1), int(os.environ.get("OMP_NUM_THREADS", "1"))
    training = {"steps": count, "watch_gradients": watch, "precision": "bfloat16", "threads": threads}
    asked = parse_recipe({"task": "text-classification", "model": model, "training": training})
    job, _, recipe = prepare_job(asked, data, Quiet())
    recipe = resolve(job, recipe, Quiet())
    settle_formats(job, recipe, count)
    job = watching(job, recipe, count)
    return steps_in_memory(job, recipe, Standing(), lambda event: None, Quiet())


def turn(steps: Iterator[Step]) -> tuple[float, float]:
    """Processor and wall seconds of as many steps as lie between two looks."""
    processor, wall = time.process_time(), time.perf_counter()
    for _ in range(EVERY):
        next(steps)
    return time.process_time() - processor, time.perf_counter() - wall


def compare(name: str, data: str, model: str, turns: int) -> None:
    """Print one line."""
    plain, seen = (steps_of(data, model, watch=watch, turns=turns) for watch in (False, True))
    turn(plain), turn(seen)
    costs: list[tuple[float, float]] = []
    for number in range(turns):
        first, second = (turn(plain), turn(seen)) if number % 2 else (turn(seen), turn(plain))[::-1]
        costs.append((second[0] / first[0] - 1, second[1] / first[1] - 1))
    cells = []
    for values in zip(*costs, strict=True):
        low, middle, high = quantiles(values, n=4, method="inclusive")
        cells.append(f"{middle:+.1%} ({low:+.1%} to {high:+.1%})")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["trec", "sst2", "mrpc"])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    print("| training | processor time | wall time |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = write_csv(Path(folder) / "reviews.csv", sentences(400))
        compare("a random model of 2 layers", str(data), str(tiny_model(Path(folder) / "model")), 5 * options.turns)
    for data_set in options.data:
        compare(f"{options.model}, {data_set}", str(DATA / data_set), options.model, options.turns)


if __name__ == "__main__":
    main()
