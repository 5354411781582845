"""Chainrule on one workload, one seed, with the settings the peers get. Prints one JSON line.

python benchmarks/ours.py --model minilm --workload mrpc --seed 0 --set training.precision=float32
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chainrule
from chainrule.core.parsing import parse_setting
from chainrule.system.progress import Quiet

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turn import Turns, tell
from workloads import CHATS, WORKLOADS, Workload


class InTurns(Quiet):
    """The place of the progress bar, taken by the clock of turns.py; the process ends when it is told to."""

    def __init__(self, steps: int) -> None:
        self.turns = Turns(steps)
        self.once = 0.0  # seconds of what is done once, before the first step

    def say(self, message: str) -> None:
        print(message, file=sys.stderr)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Any]:
        if title != "training":
            began = time.perf_counter()
            with super().bar(title, total) as silent:
                yield silent
            self.once += (time.perf_counter() - began) * (title == "computing the frozen layers once")
            return
        tell({"once": self.once})
        self.turns.step()
        yield self

    def advance(self, amount: int, note: str = "") -> None:
        self.turns.step()


def take_turns(workload: Workload, settings: dict[str, Any], folder: Path, steps: int) -> None:
    """Train without end, with the least there is to validate: only steps count here."""
    source: Any = str(workload.folder)
    if workload.task == "text-generation":
        lines = [(workload.folder / f"{split}.jsonl").read_text("utf-8").splitlines() for split in ("train", "test")]
        source = folder / "chats"
        source.mkdir()
        for split, rows in zip(("train", "validation"), (lines[0][:CHATS], lines[1][:8]), strict=True):
            (source / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    settings = settings | {"training.steps": 1_000_000, "training.evaluate_every_steps": 1_000_000}
    chainrule.train(str(source), out=folder / "run", settings=settings, display=InTurns(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a catalog name or a folder; by default the workload's")
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="chainrule", help="how the result is labelled")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--turns", type=int, default=0, help="steps of a turn; see turns.py")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    settings = {
        "task": workload.task,
        "model.name": options.model or workload.model,
        "model.max_length": workload.max_length,
        "training.epochs": workload.epochs,
        "training.batch_size": workload.batch_size,
        "optimizer.learning_rate": workload.learning_rate,
        "seed": options.seed,
        **dict(parse_setting(text) for text in options.settings),
    }
    if workload.top:
        settings |= {"strategy": "partial", "strategy.options.top": workload.top}
    if workload.task == "text-generation":
        settings |= {"strategy": "lora"}
    if workload.task == "ranking":
        settings |= {"loss": "binary-cross-entropy"}
    with tempfile.TemporaryDirectory() as folder:
        if options.turns:
            take_turns(workload, settings, Path(folder), options.turns)
        run = chainrule.train(str(workload.folder), out=Path(folder) / "run", settings=settings)
        report = chainrule.evaluate(run, str(workload.folder), split="test")
        summary, choice = run.summary, chainrule.read_recipe(run.path / "resolved.yaml").choice
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
        "seconds_choosing": choice.seconds if choice else 0.0,
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
