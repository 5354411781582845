"""Trainers in processes of their own that take turns: one makes some steps while the others wait.

Every trainer runs as its users run it, whole loop, with its own environment; only the clock decides when it goes on.
A turn that has been warmed up is compared with the others' turns of the same round, so that a machine whose speed
drifts treats all alike. A few rounds of each setting of the grid, alone with ours, choose the best-tuned peer; then
ours, the peer as it comes and that one take the turns that count. Prints a table (medians, with the quartiles of the
ratios) and adds to benchmarks/results/<date>.json.

    python benchmarks/turns.py banking77
    python benchmarks/turns.py alpaca_gpt4_en --rounds 5
    python benchmarks/turns.py predict --rounds 10
    python benchmarks/turns.py banking77 --quick
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from compare import add_results
from workloads import CHATS, DATA, MADE, PREDICTED, WORKLOADS

from chainrule.models.catalog import model_folder

OURS = "chainrule"
GRID = tuple(f"{kind}-{way}" for kind in ("float32", "autocast", "weights") for way in ("sdpa", "eager"))
# What is asked to take turns, the unit of work, and how much of it a turn is.
ENCODER = (OURS, "default", *GRID)
CHAT = (OURS, "default", "bf16", "bf16-grouped", "bf16-eager-grouped")
PREDICTION = (OURS, "pipeline", "pipeline-32", "openvino")
LONG = ("alpaca_gpt4_en", "long_documents")
DEFAULTS = ("default", "pipeline")  # a peer as it comes
STEPS = 10
CHOOSING, CHOOSING_LONG = 2, 1  # rounds that count of each setting of the grid; where a turn takes a minute
QUIET = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


class Worker:
    """A trainer in a process of its own."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.once = name, 0.0
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(HERE / "results" / f"{name}.log").open("w"),
            text=True,
            env={**os.environ, **QUIET, "CHAINRULE_CACHE": str(MADE / "cache")},
        )

    def turn(self) -> float:
        """Let it do one turn."""
        self._say("go")
        answer = self._answer()
        if "once" in answer:
            self.once, answer = float(answer["once"]), self._answer()
        return float(answer["seconds"])

    def stop(self) -> float:
        """End it; its peak memory in MB."""
        self._say("stop")
        memory = float(self._answer()["peak_memory_mb"])
        self.process.wait(60)
        return memory

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("turn "):
                answer: dict[str, Any] = json.loads(line.removeprefix("turn "))
                return answer
        raise SystemExit(f"{self.name} has ended; see benchmarks/results/{self.name}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()


def command(trainer: str, workload: str, steps: int, artifact: str) -> list[str]:
    """What starts a trainer, or a predictor, that takes turns."""
    if workload == "predict":
        script = "ours_predict.py" if trainer == OURS else "peers/predict.py"
        return [str(HERE / script), "--name", trainer, "--artifact", artifact, "--turns", "1"]
    model = str(model_folder(WORKLOADS[workload].model))
    common = ["--workload", workload, "--model", model, "--turns", str(steps)]
    if trainer == OURS:
        return [str(HERE / "ours.py"), *common]
    script = "trl_sft.py" if WORKLOADS[workload].task == "text-generation" else "hf_trainer.py"
    return [str(HERE / "peers" / script), *common, "--config", trainer]


def classifier() -> Path:
    """A classifier of ag_news to predict with, trained for a minute or so the first time.

    In a process of its own: what this one takes at most, its children count as theirs.
    """
    run = MADE / "classifier"
    if not (run / "summary.json").is_file():
        words = ["train", str(DATA / "ag_news"), "--model", "minilm", "--max-length", "128", "--out", str(run)]
        settings = ["--set", "training.steps=60", "--set", "training.precision=bfloat16"]
        subprocess.run([sys.executable, "-m", "chainrule", *words, *settings], check=True)
    return run / "artifact"


def take_turns(trainers: Sequence[str], workload: str, rounds: int, steps: int, artifact: str) -> dict[str, Any]:
    """Of every trainer: seconds of its turns, and of what it did once before them; steps of a whole run; peak memory.

    Each has made its first turn, which does not count, before the next one is started.
    """
    workers: list[Worker] = []
    try:
        for number in range(rounds + 1):
            for name in trainers:
                if not number:
                    workers.append(Worker(name, command(name, workload, steps, artifact)))
                worker = workers[-1] if not number else next(one for one in workers if one.name == name)
                seconds = worker.turn()
                if number:
                    worker.seconds.append(seconds)
                print(f"round {number} {worker.name} {seconds:.2f} s", file=sys.stderr, flush=True)
        whole = whole_turns(workload, steps)
        return {
            worker.name: {
                "seconds": worker.seconds,
                "once": worker.once,
                "whole_turns": whole,
                "peak_memory_mb": worker.stop(),
            }
            for worker in workers
        }
    finally:
        for worker in workers:
            worker.process.kill()


def whole_turns(workload: str, steps: int) -> float:
    """Turns of a whole run of the workload, which what is done once is spread over."""
    if workload not in WORKLOADS or WORKLOADS[workload].task == "text-generation":
        return 1.0
    setting = WORKLOADS[workload]
    with (setting.folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    return float(setting.epochs * rows / (setting.batch_size * steps))


def ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[float, float, float]:
    """Median and quartiles of the peer's time over ours, turn by turn, with what was done once in its share."""
    shares = [result["once"] / result["whole_turns"] for result in (theirs, ours)]
    pairs = zip(theirs["seconds"], ours["seconds"], strict=True)
    found = [(a + shares[0]) / (b + shares[1]) for a, b in pairs]
    if len(found) < 2:
        return found[0], found[0], found[0]
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return middle, low, high


def choose(peers: Sequence[str], workload: str, steps: int, artifact: str) -> str:
    """The fastest of the settings, each in turn with ours alone."""
    found: dict[str, float] = {}
    for name in peers:
        shutil.rmtree(MADE / "cache" / "trunks", ignore_errors=True)
        rounds = CHOOSING_LONG if workload in LONG else CHOOSING
        results = take_turns([OURS, name], workload, rounds, steps, artifact)
        add_results([{"choosing": workload, "trainer": key, **result} for key, result in results.items()])
        found[name], _, _ = ratios(results[name], results[OURS])
        print(f"{name}: {found[name]:.2f} times the time of ours ({rounds} rounds)", flush=True)
    return min(found, key=lambda name: found[name])


def table(results: dict[str, Any], rows: int, unit: str) -> list[str]:
    """Rate, spread, ratio to ours with its quartiles, and peak memory of each."""
    lines = [f"| | {unit}/s | time / ours | quartiles | peak memory, MB |", "|---|---|---|---|---|"]
    for name, result in results.items():
        middle, low, high = ratios(result, results[OURS])
        rate = rows / (median(result["seconds"]) + result["once"] / result["whole_turns"])
        cells = f"{rate:.0f} | {middle:.2f} | {low:.2f}–{high:.2f} | {result['peak_memory_mb']:.0f}"
        lines.append(f"| {name} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=[*sorted(WORKLOADS), "predict"])
    parser.add_argument("--trainers", nargs="+", help="peers; by default as they come, and the best of a grid")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each that count")
    parser.add_argument("--quick", action="store_true", help="4 rounds")
    parser.add_argument(
        "--artifact", default="", help="for predict: a classifier that Chainrule has saved; by default one is trained"
    )
    options = parser.parse_args()
    rounds = 4 if options.quick else options.rounds
    (HERE / "results").mkdir(exist_ok=True)
    whole: tuple[str, ...]
    if options.workload == "predict":
        whole, steps, rows, unit = PREDICTION, 1, PREDICTED, "rows"
    elif WORKLOADS[options.workload].task == "text-generation":
        steps = CHATS // WORKLOADS[options.workload].batch_size
        whole, rows, unit = CHAT, CHATS, "chats"
    else:
        whole, steps, unit = ENCODER, STEPS, "rows"
        rows = STEPS * WORKLOADS[options.workload].batch_size
    artifact = options.artifact or (str(classifier()) if options.workload == "predict" else "")
    peers = [name for name in options.trainers or () if name != OURS]
    if not peers:
        tuned = [name for name in whole if name not in (OURS, *DEFAULTS)]
        best = choose(tuned, options.workload, steps, artifact) if len(tuned) > 1 else tuned[0]
        peers = [*(name for name in DEFAULTS if name in whole), best]
    # Language models take gigabytes: one peer at a time.
    for together in [[name] for name in peers] if unit == "chats" else [peers]:
        shutil.rmtree(MADE / "cache" / "trunks", ignore_errors=True)
        results = take_turns([OURS, *together], options.workload, rounds, steps, artifact)
        add_results([{"turns": options.workload, "trainer": name, **result} for name, result in results.items()])
        print("\n".join(table(results, rows, unit)), flush=True)


if __name__ == "__main__":
    main()
