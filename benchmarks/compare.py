"""Chainrule and the Hugging Face Trainer in turn (A B A B …), each run in a process of its own, and their ratio.

Prints a table and adds to benchmarks/results/<date>.json. Absolute seconds depend on the machine and on what else it
does; the ratio of the medians is the result. Needs `pip install -e '.[bench]'` and the folder of data sets.

    python benchmarks/compare.py --workloads trec mrpc --seeds 3
    python benchmarks/compare.py --quick
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from chainrule.models.catalog import model_folder
from chainrule.models.lstm import NAME as LSTM
from chainrule.system.device import cpu_flags, physical_cores

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import WORKLOADS, Workload

PEERS = ("hf-tuned", "hf-default")
PEER_OF = {
    "token-classification": "hf_tokens.py",
    "question-answering": "hf_answers.py",
    "sentence-similarity": "st_vectors.py",
    "embedding": "st_vectors.py",
    "ranking": "st_pairs.py",
}


def run_one(trainer: str, workload: Workload, seed: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """One training in a fresh process; the last line it prints is its result.

    Args:
        trainer: "hf-" and a configuration of the peer; any other name is ours, with `settings` of its recipe.
    """
    model = workload.model if workload.model == LSTM else str(model_folder(workload.model))
    common = ["--model", model, "--workload", workload.name, "--seed", str(seed)]
    if not trainer.startswith("hf-"):
        more = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, str(HERE / "ours.py"), *common, "--name", trainer, *more]
    else:
        config = trainer.removeprefix("hf-")
        script = "hf_lstm.py" if workload.model == LSTM else PEER_OF.get(workload.task, "hf_trainer.py")
        command = [sys.executable, str(HERE / "peers" / script), *common, "--config", config]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def row(workload: Workload, results: list[dict[str, Any]], trainers: list[str]) -> list[str]:
    """One line of the table: medians of score and seconds, and the ratio of the peer's seconds to ours."""
    mine = {name: [r for r in results if r["trainer"] == name and r["workload"] == workload.name] for name in trainers}
    cells = [workload.name, workload.metric]
    seconds = {}
    for name in trainers:
        seconds[name] = median(r["seconds"] for r in mine[name])
        cells.append(f"{median(r[workload.metric] for r in mine[name]):.4f} in {seconds[name]:.0f} s")
    return [*cells, *(f"{seconds[name] / seconds['chainrule']:.2f}" for name in trainers if name != "chainrule")]


def add_results(results: list[dict[str, Any]]) -> None:
    """Add to today's file, with what the machine and the packages are."""
    machine = {
        "cores": physical_cores(),
        "cpu_flags": sorted(f for f in cpu_flags() if f.startswith(("amx", "avx512"))),
    }
    packages = {package: version(package) for package in ("torch", "transformers", "accelerate", "numpy")}
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.date.today().isoformat()}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    document = {
        "machine": machine,
        "python": platform.python_version(),
        "packages": packages,
        "results": [*before, *results],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=sorted(WORKLOADS), choices=sorted(WORKLOADS))
    parser.add_argument("--peers", nargs="+", default=["hf-tuned"], choices=PEERS)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds; the same for every trainer")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="trec once: a few minutes")
    options = parser.parse_args()
    names, count = (["trec"], 1) if options.quick else (options.workloads, options.seeds)
    trainers = ["chainrule", *options.peers]
    results = []
    for name in names:
        for seed in range(options.first_seed, options.first_seed + count):
            for trainer in trainers:
                result = run_one(trainer, WORKLOADS[name], seed)
                results.append(result)
                print(json.dumps(result, ensure_ascii=False), file=sys.stderr, flush=True)
    add_results(results)
    print("| data | metric | " + " | ".join(trainers) + " | " + " | ".join(f"{p} / ours" for p in options.peers) + " |")
    print("|" + "---|" * (2 + len(trainers) + len(options.peers)))
    for name in names:
        print("| " + " | ".join(row(WORKLOADS[name], results, trainers)) + " |")


if __name__ == "__main__":
    main()
