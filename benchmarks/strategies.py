"""What each way to fine-tune reaches, on whole training sets and on slices of 64 rows: score, time, memory.

Every run has the strategy's default options and learning rate and is a line of benchmarks/results/strategies.jsonl;
runs that are there already are not made again. On whole sets each is a process of its own, so that the peak of memory
is its own. Seconds mean something only where --quiet says that nothing else ran beside; there, what earlier runs kept
of frozen layers is removed first.

    python benchmarks/strategies.py --strategies full lora head --seeds 3
    python benchmarks/strategies.py --rows 64 --seeds 10 --jobs 2
    python benchmarks/strategies.py --report
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import chainrule
from chainrule.core.parsing import parse_setting
from chainrule.system.assets import cache_folder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import WORKLOADS

RESULTS = HERE / "results" / "strategies.jsonl"
DATA = ("mrpc", "trec", "sst2", "banking77")
STRATEGIES = ("full", "partial", "head", "gradual", "lora", "hybrid")
SLICE_STEPS = 60  # of 16 rows each: some sixteen epochs of 58 rows
SLICE_BATCH = 16
Key = tuple[str, int, str, int]


def cached() -> dict[Key, dict[str, Any]]:
    """(data, rows, strategy, seed) -> result; a later line replaces an earlier one."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {(r["data"], r["rows"], r["label"], r["seed"]): r for r in map(json.loads, lines)}


def write_slice(source: Path, target: Path, rows: int, seed: int) -> Path:
    """So many training rows, drawn by the seed, as the only file of a folder."""
    with (source / "train.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header, all_rows = next(reader), list(reader)
    target.mkdir()
    with (target / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *random.Random(seed).sample(all_rows, rows)])
    return target


def accuracy(run: Any, source: Path) -> float:
    """Of the whole test split. Classes that the training rows do not have count as wrong."""
    with (source / "test.csv").open(encoding="utf-8", newline="") as file:
        truth = [row["label"] for row in csv.DictReader(file)]
    found = chainrule.predict(run, str(source / "test.csv"))
    if isinstance(found, int):
        raise TypeError("rows, where there is no file to write them to")
    return mean(str(row["predicted_label"]) == label for row, label in zip(found, truth, strict=True))


def run_one(options: argparse.Namespace, data: str, strategy: str, seed: int) -> dict[str, Any]:
    """One training in this process, and its score on the test split."""
    workload = WORKLOADS[data]
    settings: dict[str, Any] = {
        "task": workload.task,
        "model": {"name": workload.model, "max_length": workload.max_length},
        "strategy": strategy,
        "training.batch_size": workload.batch_size,
        "training.threads": options.threads,
        "training.checkpoint_minutes": 1000,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), workload.folder
        if options.rows:
            source = write_slice(source, folder / "slice", options.rows, seed)
            settings |= {"training.steps": SLICE_STEPS, "training.evaluate_every_steps": SLICE_STEPS}
            settings |= {"training.batch_size": SLICE_BATCH}
        else:
            settings["training.epochs"] = workload.epochs
        settings |= dict(parse_setting(text) for text in options.settings)
        run = chainrule.train(str(source), out=folder / "run", settings=settings)
        summary, resolved = run.summary, chainrule.read_recipe(run.path / "resolved.yaml")
        score = accuracy(run, workload.folder)
    kept = ("seconds", "seconds_total", "peak_memory_mb", "trained_parameters", "steps", "best_step", "precision")
    return {
        "data": data,
        "rows": options.rows,
        "label": options.label or strategy,
        "seed": seed,
        "strategy": resolved.strategy.model_dump(mode="json"),
        "learning_rate": resolved.optimizer.learning_rate,
        "accuracy": round(score, 5),
        "validation": round(summary["metrics"]["accuracy"], 5),
        **{name: summary[name] for name in kept},
        "threads": options.threads,
        "quiet": options.quiet,
        "settings": options.settings,
        "choice": resolved.choice.model_dump(mode="json") if resolved.choice else None,
    }


def complete(options: argparse.Namespace) -> None:
    """Make the runs that are not there yet; on whole sets seeds come last, so that strategies take turns."""
    there, wanted = cached(), list[tuple[str, str, list[int]]]()
    seeds = list(range(options.first_seed, options.seeds))
    for together in [seeds] if options.rows else [[seed] for seed in seeds]:
        for data, strategy in product(options.data, options.strategies):
            left = [seed for seed in together if (data, options.rows, options.label or strategy, seed) not in there]
            wanted += [(data, strategy, left)] if left else []
    passed = ["--rows", str(options.rows), "--threads", str(options.threads), *(["--quiet"] * options.quiet)]
    passed += ["--label", options.label] if options.label else []
    passed += [word for setting in options.settings for word in ("--set", setting)]

    def child(work: tuple[str, str, list[int]]) -> None:
        data, strategy, seeds = work
        one = ["--one", *map(str, seeds), "--data", data, "--strategies", strategy, *passed]
        if options.quiet:
            shutil.rmtree(cache_folder() / "trunks", ignore_errors=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(
            [sys.executable, __file__, *one], capture_output=True, text=True, check=False, env=environment
        )
        if done.returncode:
            print(f"{work} failed:\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(done.stdout)
        print(done.stdout, end="", file=sys.stderr, flush=True)

    RESULTS.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(child, wanted))


def table(results: dict[Key, dict[str, Any]], rows: int, data: Sequence[str]) -> Iterator[str]:
    """Strategies by mean test accuracy on each set: mean ± standard deviation (seeds)."""
    labels = list(dict.fromkeys(key[2] for key in results if key[1] == rows))
    yield "| strategy | " + " | ".join(data) + " | mean |"
    yield "|---" * (len(data) + 2) + "|"
    for label in labels:
        cells, means = [], []
        for name in data:
            scores = [100 * r["accuracy"] for (d, n, s, _), r in results.items() if (d, n, s) == (name, rows, label)]
            if not scores:
                cells.append("–")
                continue
            means.append(mean(scores))
            spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
            cells.append(f"{means[-1]:.1f}{spread} ({len(scores)})")
        whole = f"{mean(means):.1f}" if len(means) == len(data) else "–"
        yield f"| {label} | " + " | ".join(cells) + f" | {whole} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=sorted(WORKLOADS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--rows", type=int, default=0, help="draw so many training rows; 0 for all")
    parser.add_argument("--seeds", type=int, default=3, help="the last seed, and one more")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--label", help="how the results are labelled, where --set makes them others")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--quiet", action="store_true", help="nothing else runs on this machine")
    parser.add_argument("--one", type=int, nargs="+", help="make the runs of these seeds in this process")
    parser.add_argument("--report", action="store_true", help="make no runs, only the tables of those that are there")
    options = parser.parse_args()
    if options.settings and not options.label:
        parser.error("--set makes other runs than those of the strategy's defaults: give them a --label")
    if options.one is not None:
        for seed in options.one:
            result = run_one(options, options.data[0], options.strategies[0], seed)
            print(json.dumps(result, ensure_ascii=False), flush=True)
        return
    if not options.report:
        complete(options)
    results = cached()
    for rows in sorted({key[1] for key in results}):
        print(f"\n{rows or 'all'} rows\n")
        print("\n".join(table(results, rows, options.data)))


if __name__ == "__main__":
    main()
