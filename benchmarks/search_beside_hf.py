"""`chainrule search` beside `hyperparameter_search` of the Hugging Face Trainer, in turn, each in its own process.

Both draw 20 trials from the same space with the same sampler (TPE), seed, splits and pruner (median); the peer is tuned
as benchmarks/peers/hf_search.py says. The peer goes first; ours is given a share of its seconds as --budget, a fifth by
default, which makes its trials shorter. Both train the winner whole and judge it once on test. Seconds are those of the
whole command. Each study is a line of benchmarks/results/search.jsonl; benchmarks/tables.py --search prints the table.

    python benchmarks/search_beside_hf.py                   # trec and mrpc, 3 seeds each: hours
    python benchmarks/search_beside_hf.py --quick           # 3 short trials on trec, printed and not kept
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import yaml

from chainrule.hpo.optuna_study import STARTUP
from chainrule.models.catalog import model_folder
from chainrule.system.device import physical_cores

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import WORKLOADS, Workload

RESULTS = HERE / "results" / "search.jsonl"
DATA = "trec", "mrpc"
OURS, PEER = "chainrule", "hf-tuned"
SPACE: dict[str, Any] = {
    "optimizer.learning_rate": {"low": 1e-5, "high": 5e-4, "log": True},
    "training.batch_size": [16, 32, 64],
    "schedule.warmup": {"low": 0.0, "high": 0.3},
    "optimizer.weight_decay": {"low": 1e-4, "high": 0.1, "log": True},
}
QUICK = {"trials": 3, "epochs": 0.2, "share": 2.0}  # of so little, most of our time is spent before the first step


def timed(command: Sequence[str], folder: Path) -> tuple[dict[str, Any], float]:
    """What a command has printed as its last line, or whole, and the seconds it took.

    Raises:
        SystemExit: it has failed.
    """
    began = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    text = done.stdout if done.stdout.startswith("{\n") else done.stdout.strip().splitlines()[-1]
    return json.loads(text), seconds


def peers(workload: Workload, asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The peer's study."""
    script, model = str(HERE / "peers" / "hf_search.py"), str(model_folder(workload.model))
    command = [sys.executable, script, "--model", model, "--workload", workload.name, "--asked", json.dumps(asked)]
    told, seconds = timed(command, folder)
    return {**told, "seconds": round(seconds, 2)}


def ours(workload: Workload, asked: dict[str, Any], budget: float, folder: Path) -> dict[str, Any]:
    """Our study."""
    recipe = {
        "task": workload.task,
        "model": {"name": workload.model, "max_length": workload.max_length},
        "data": str(workload.folder.resolve()),
        "strategy": "full",
        "training": {"epochs": asked["epochs"]},
        "seed": asked["seed"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "space.yaml").write_text(yaml.safe_dump(asked["space"], sort_keys=False), encoding="utf-8")
    words = [
        "search",
        "recipe.yaml",
        "--space",
        "space.yaml",
        "--budget",
        f"{max(1, round(budget))}s",
        "--out",
        "study",
    ]
    command = [sys.executable, "-m", "chainrule", *words, "--trials", str(asked["trials"]), "--json"]
    told, seconds = timed(command, folder)
    states = [trial["state"] for trial in told["trials"]]
    return {
        "selected": told["selected"],
        "validation": told["validation"],
        "test": told["test"]["value"],
        "seconds_of_trials": round(sum(trial["seconds"] or 0.0 for trial in told["trials"]), 2),
        "finished": states.count("complete"),
        "pruned": states.count("pruned"),
        "failed": states.count("fail"),
        "best": told["best"]["values"],
        "first": told["trials"][0]["values"],
        "budget": round(budget, 2),
        "steps_of_a_trial": told["steps_of_a_trial"],
        "seconds": round(seconds, 2),
    }


def study_pair(workload: Workload, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The peer's study and ours of one seed."""
    asked = {
        "space": SPACE,
        "trials": options.trials,
        "startup": STARTUP,
        "epochs": options.epochs or workload.epochs,
        "seed": seed,
        "drawn": int(np.random.SeedSequence((seed, 0, 0)).generate_state(1)[0]),  # as our sampler is seeded
    }
    common = {
        "date": datetime.date.today().isoformat(),
        "workload": workload.name,
        "metric": workload.metric,
        **{key: asked[key] for key in ("seed", "trials", "epochs")},
        "cores": physical_cores(),
        "packages": {name: version(name) for name in ("torch", "transformers", "optuna", "chainrule")},
    }
    with tempfile.TemporaryDirectory() as folder:
        theirs = peers(workload, asked, Path(folder))
        mine = ours(workload, asked, options.share * theirs["seconds"], Path(folder))
    return [{"trainer": PEER, **common, **theirs}, {"trainer": OURS, **common, **mine}]


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of a table: means of the scores, medians of the seconds, and their ratio, over the seeds of a data set."""
    found = [
        "| data | studies | validation, ours / peer | test, ours / peer | seconds, ours / peer | peer / ours "
        "| finished + pruned, ours / peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(line["workload"] for line in lines):
        both = [[li for li in lines if li["workload"] == name and li["trainer"] == who] for who in (OURS, PEER)]
        if not all(both):
            continue
        scores = [
            " / ".join(f"{mean(line[split] for line in of):.4f}" for of in both) for split in ("validation", "test")
        ]
        seconds = [median(line["seconds"] for line in of) for of in both]
        counts = [" + ".join(f"{mean(li[k] for li in of):.3g}" for k in ("finished", "pruned")) for of in both]
        cells = [name, str(len(both[0])), *scores, " / ".join(f"{s:.0f}" for s in seconds)]
        found.append("| " + " | ".join([*cells, f"{seconds[1] / seconds[0]:.2f}", " / ".join(counts)]) + " |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=float, help="instead of the workload's")
    parser.add_argument("--share", type=float, default=0.2, help="of the peer's seconds, as our budget")
    parser.add_argument("--quick", action="store_true", help="one study of 3 short trials on trec; it is not kept")
    options = parser.parse_args()
    if options.quick:
        options.workloads, options.seeds = ["trec"], 1
        vars(options).update(QUICK)
    lines = []
    for name in options.workloads:
        for seed in range(options.seeds):
            for line in study_pair(WORKLOADS[name], seed, options):
                lines.append(line)
                text = json.dumps(line, ensure_ascii=False)
                print(text, file=sys.stderr, flush=True)
                if not options.quick:
                    RESULTS.parent.mkdir(exist_ok=True)
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(text + "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
