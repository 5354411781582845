"""How well `plan` predicts: cases planned, trained right after, and compared.

`python benchmarks/planning.py --repeats 3` makes the runs that are not there yet; each is a line of
benchmarks/results/planning.jsonl. `--report` prints the table. A prediction is of the machine as it is when it is made:
on a busy machine the times of both drift.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from workloads import DATA

RESULTS = Path(__file__).resolve().parent / "results" / "planning.jsonl"


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    data: str
    strategy: str
    epochs: float
    model: str = "minilm"
    max_length: int | None = None
    task: str = "text-classification"
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("short, full", "trec", "full", 1),
    Case("short, partial on the trunk cache", "trec", "partial", 3),
    Case("short, head", "trec", "head", 3),
    Case("short, gradual", "trec", "gradual", 1),
    Case("short, lora", "trec", "lora", 1),
    Case("pairs, full", "mrpc", "full", 0.5, max_length=128),
    Case("pairs, bitfit", "mrpc", "bitfit", 0.5, max_length=128),
    Case("cut to 32, full", "mrpc", "full", 1, max_length=32),
    Case("news, partial", "ag_news", "partial", 0.1, max_length=64),
    Case("many classes, full", "banking77", "full", 0.5),
    Case("numbers, full", "stsb", "full", 0.5, task="regression"),
    Case("words, full", "conll2003pp", "full", 0.2, task="token-classification"),
    Case("an LSTM", "sst2", "full", 1, model="lstm"),
    Case(
        "replies, lora",
        "alpaca_gpt4_en",
        "lora",
        0.02,
        "smollm2",
        128,
        "text-generation",
        {"training.batch_size": 8, "data.on_bad_row": "skip"},
    ),
)


def run_case(case: Case, threads: int) -> dict[str, Any]:
    """Plan, train what was planned, compare; each in a process of its own."""
    settings = {"training.threads": threads, **case.settings}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [str(DATA / case.data), "--task", case.task, "--model", case.model, "--strategy", case.strategy]
        words += ["--epochs", str(case.epochs), "--out", str(folder / "recipe.yaml")]
        words += ["--max-length", str(case.max_length)] if case.max_length else []
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        busy = os.getloadavg()[0]
        planned = command("plan", *words)
        summary = command("train", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    predicted = planned["predicted"]
    return {
        **asdict(case),
        "threads": threads,
        "load_before": round(busy, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "planning_seconds": planned["took"],
        "steps": summary["steps"],
        "predicted_seconds": predicted["seconds"],
        "seconds": summary["seconds"],
        "predicted_mb": predicted["peak_memory_mb"],
        "mb": summary["peak_memory_mb"],
    }


def command(*words: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    line = [sys.executable, "-m", "chainrule", *words, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stdout + done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows() -> list[dict[str, Any]]:
    """The runs that were made."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def report() -> None:
    """The table: medians over repeats of predicted over actual."""
    print("| case | runs | seconds | predicted / actual | MB | predicted / actual |\n|---|---|---|---|---|---|")
    good_time = good_memory = count = 0
    for case in CASES:
        found = [row for row in rows() if row["name"] == case.name]
        if not found:
            continue
        time = median(row["predicted_seconds"] / row["seconds"] for row in found)
        memory = median(row["predicted_mb"] / row["mb"] for row in found)
        seconds, megabytes = (median(row[key] for row in found) for key in ("seconds", "mb"))
        print(f"| {case.name} | {len(found)} | {seconds:.1f} | {time:.2f} | {megabytes:,.0f} | {memory:.2f} |")
        count, good_time, good_memory = (
            count + 1,
            good_time + (0.75 <= time <= 1.25),
            good_memory + (0.85 <= memory <= 1.15),
        )
    print(f"\nwithin a quarter on time: {good_time} of {count}; within 15 % on memory: {good_memory} of {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        RESULTS.parent.mkdir(exist_ok=True)
        for repeat in range(options.repeats):
            for case in CASES:
                there = sum(row["name"] == case.name for row in rows())
                if case.name in options.only and there <= repeat:
                    found = run_case(case, options.threads)
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(found) + "\n")
                    keys = ("predicted_seconds", "seconds", "predicted_mb", "mb")
                    print(case.name, *(f"{found[key]:,.1f}" for key in keys), flush=True)
    report()


if __name__ == "__main__":
    main()
