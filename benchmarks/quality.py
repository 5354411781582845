"""Is it as good? The same seeds for every trainer, the paired differences in points with their 95 % interval.

Runs what is missing in benchmarks/results/quality.jsonl, one line per run, and prints the tables: a peer's run is made
once and read from there ever after. Ours are labelled by --name; give a new one after a change of the numerics.

    python benchmarks/quality.py --workloads trec mrpc sst2 --seeds 5
    python benchmarks/quality.py --workloads mrpc --seeds 10 --name random --set training.group_by_length=false
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as students_t

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from compare import run_one
from workloads import WORKLOADS, Workload

CACHE = HERE / "results" / "quality.jsonl"
Key = tuple[str, str, int]


def cached() -> dict[Key, dict[str, Any]]:
    """(trainer, workload, seed) -> result; a later line replaces an earlier one."""
    lines = CACHE.read_text(encoding="utf-8").splitlines() if CACHE.is_file() else []
    results = [json.loads(line) for line in lines]
    return {(result["trainer"], result["workload"], result["seed"]): result for result in results}


def complete(names: Sequence[str], workloads: Sequence[Workload], seeds: int, settings: Sequence[str]) -> None:
    """Make the runs that are not there yet, in turn."""
    there = cached()
    CACHE.parent.mkdir(exist_ok=True)
    for workload in workloads:
        for seed in range(seeds):
            for name in names:
                if (name, workload.name, seed) in there:
                    continue
                result = run_one(name, workload, seed, settings)
                with CACHE.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result, ensure_ascii=False) + "\n")
                print(json.dumps(result, ensure_ascii=False), file=sys.stderr, flush=True)


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and Student's 95 % interval of paired differences, in points."""
    points = [100 * difference for difference in differences]
    half = float(students_t.ppf(0.975, len(points) - 1)) * stdev(points) / math.sqrt(len(points))
    return mean(points), mean(points) - half, mean(points) + half


def report(name: str, peer: str, workloads: Sequence[Workload], seeds: int) -> None:
    """The scores of every seed, and what they say of the difference."""
    results, pooled = cached(), []
    print(f"\n{name} − {peer}\n")
    print(f"| data | seeds | {name} | {peer} | difference in points (95 %) |\n|---|---|---|---|---|")
    for workload in workloads:
        pairs = [
            tuple(results[trainer, workload.name, seed][workload.metric] for trainer in (name, peer))
            for seed in range(seeds)
            if (name, workload.name, seed) in results and (peer, workload.name, seed) in results
        ]
        if len(pairs) < 2:
            continue
        ours, theirs = zip(*pairs, strict=True)
        differences = [a - b for a, b in pairs]
        pooled += differences
        spread = [f"{mean(scores):.4f} ± {stdev(scores):.4f}" for scores in (ours, theirs)]
        middle, low, high = interval(differences)
        line = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
        print(f"| {workload.name} | {len(pairs)} | {spread[0]} | {spread[1]} | {line} |")
    if len(workloads) > 1 and len(pooled) > 1:
        middle, low, high = interval(pooled)
        print(f"| all | {len(pooled)} | | | {middle:+.2f} ({low:+.2f} to {high:+.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=["trec", "mrpc", "sst2"], choices=sorted(WORKLOADS))
    parser.add_argument("--peers", nargs="*", default=["hf-tuned"], help="hf-tuned, hf-default, or a --name of before")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0; the same for every trainer")
    parser.add_argument("--name", default="chainrule", help="how our results are labelled")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="key=value of our recipe")
    parser.add_argument("--report", action="store_true", help="make no runs, only the tables of those that are there")
    options = parser.parse_args()
    workloads = [WORKLOADS[name] for name in options.workloads]
    if not options.report:
        peers = [peer for peer in options.peers if peer.startswith("hf-")]
        complete([options.name, *peers], workloads, options.seeds, options.settings)
    for peer in options.peers:
        report(options.name, peer, workloads, options.seeds)


if __name__ == "__main__":
    main()
