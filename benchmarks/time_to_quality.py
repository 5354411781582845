"""How soon is it as good? A short training of ours against the peer's whole one, in turn, each in its own process.

The peer is the Hugging Face Trainer, tuned, with the epochs of benchmarks/workloads.py; ours has the strategy, learning
rate and epochs of --set, or `auto`, whose time of choosing counts. Prints both scores, both times and their ratio.

    python benchmarks/time_to_quality.py --workloads trec banking77 --seeds 3 \
        --set strategy=gradual --set optimizer.learning_rate=3e-4 --set training.epochs=0.7
    python benchmarks/time_to_quality.py --set strategy=auto --set optimizer.learning_rate=null
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

from chainrule.system.assets import cache_folder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from compare import run_one
from workloads import WORKLOADS

RESULTS = HERE / "results" / "time_to_quality.jsonl"
DATA = ("mrpc", "trec", "sst2", "banking77")
CLOSE = 0.005  # half a point


def seconds_of(result: dict[str, Any]) -> float:
    """Of the training, and of choosing its strategy."""
    return float(result["seconds"] + result.get("seconds_choosing", 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=list(DATA), choices=sorted(WORKLOADS))
    parser.add_argument("--peer", default="hf-tuned")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="settings that were found on seeds want others")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="key=value of our recipe")
    options = parser.parse_args()
    print("| data | ours | peer | peer's seconds / ours | as good |\n|---|---|---|---|---|")
    for name in options.workloads:
        workload, ours, theirs = WORKLOADS[name], list[dict[str, Any]](), list[dict[str, Any]]()
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for trainer, results in (("chainrule", ours), (options.peer, theirs)):
                shutil.rmtree(cache_folder() / "trunks", ignore_errors=True)
                result = run_one(trainer, workload, seed, options.settings)
                results.append(result)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result, ensure_ascii=False) + "\n")
        scores = [mean(result[workload.metric] for result in results) for results in (ours, theirs)]
        seconds = [median(map(seconds_of, results)) for results in (ours, theirs)]
        cells = [f"{score:.4f} in {time:.0f} s" for score, time in zip(scores, seconds, strict=True)]
        verdict = "yes" if scores[0] >= scores[1] - CLOSE else "no"
        print(f"| {name} | {' | '.join(cells)} | {seconds[1] / seconds[0]:.2f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
