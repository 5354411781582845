"""Chainrule on one workload, one seed, with the settings the peers get. Prints one JSON line.

python benchmarks/ours.py --model minilm --workload mrpc --seed 0 --set training.precision=float32
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import chainrule
from chainrule.core.recipe import parse_setting

sys.path.insert(0, str(Path(__file__).resolve().parent))
from workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm", help="a catalog name or a folder")
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="chainrule", help="how the result is labelled")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    settings = {
        "task": workload.task,
        "model.name": options.model,
        "model.max_length": workload.max_length,
        "training.epochs": workload.epochs,
        "training.batch_size": workload.batch_size,
        "optimizer.learning_rate": workload.learning_rate,
        "seed": options.seed,
        **dict(parse_setting(text) for text in options.settings),
    }
    with tempfile.TemporaryDirectory() as folder:
        run = chainrule.train(str(workload.folder), out=Path(folder) / "run", settings=settings)
        report = chainrule.evaluate(run, str(workload.folder), split="test")
        summary = run.summary
    baseline = report.baselines.get(report.verdict.baseline or "", {})
    result = {
        "trainer": options.name,
        "workload": workload.name,
        "seed": options.seed,
        "epochs": workload.epochs,
        workload.metric: report.metrics[workload.metric].value,
        "baseline": report.verdict.baseline,
        "baseline_value": baseline[workload.metric].value if baseline else None,
        "verdict": report.verdict.text,
        "seconds": summary["seconds"],
        "seconds_total": summary["seconds_total"],
        "precision": summary["precision"],
        "best_step": summary["best_step"],
        "steps": summary["steps"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "settings": options.settings,
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
