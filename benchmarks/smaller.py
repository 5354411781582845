"""What is left of fine-tuned models once they are made smaller: scores with intervals, then speeds in turn.

`make` fine-tunes minilm on each data set and makes what `chainrule compress` and `merge` make of it, with limits opened
wide so that everything is seen; each outcome is a line of benchmarks/results/smaller.jsonl, and one that is there is
not made again. `time` lets all that lies in the folder read the same test rows in turn, beside the libraries' own ways.

    python benchmarks/smaller.py make --data trec stsb --folder /tmp/smaller
    python benchmarks/smaller.py time --data trec stsb --folder /tmp/smaller --rounds 5
    python benchmarks/smaller.py report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import pipeline

import chainrule
from chainrule.api.exporting import rows_of_split
from chainrule.core.artifact import Artifact, Parity, Run
from chainrule.core.recipe import read_recipe
from chainrule.core.request import Limits
from chainrule.data.batch import by_length, collate
from chainrule.evaluation.parity import compare
from chainrule.inference.predict import BATCH_TOKENS, load_predictor
from chainrule.system.device import use_threads

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import WORKLOADS

RESULTS = HERE / "results" / "smaller.jsonl"
EPOCHS = {"trec": 3, "stsb": 4, "banking77": 5, "conll2003pp": 3, "sst2": 2}
SEEDS = 3
WIDE: Limits = {"loss": 100.0, "worst": 100.0, "allow_slower": True}
ROWS, SINGLES = 512, 16  # that are read in a turn: together, and one at a time
WEIGHTS = (".safetensors", ".bin", ".onnx", ".data")
MADE = {
    "int8": "int8",
    "prune 60 %": "prune",
    "3 layers": "three",
    "3 layers, int8": "three-int8",
    "lstm": "lstm",
    "average": "average",
}
READS_ROWS = ("trec", "banking77", "sst2")  # an LSTM learns these

Texts = dict[str, list[Any]]


@dataclass(frozen=True)
class Place:
    """Where the models of one data set lie, and the data."""

    data: str
    home: Path

    @property
    def source(self) -> str:
        return str(WORKLOADS[self.data].folder)

    def teacher(self, seed: int = 0) -> Run:
        return Run(self.home / f"teacher-{seed}")

    def __truediv__(self, name: str) -> Path:
        return self.home / name


def between(before: Artifact, after: Artifact, place: Place) -> Parity:
    """Two models on the test rows, paired."""
    first, second = load_predictor(before), load_predictor(after)
    rows = rows_of_split(first, place.source, "test")
    return compare(first, second, rows)


def train_teacher(place: Place, seed: int) -> Parity:
    settings = {
        "task": WORKLOADS[place.data].task,
        "model": {"name": "minilm", "max_length": WORKLOADS[place.data].max_length},
        "training.epochs": EPOCHS[place.data],
        "seed": seed,
    }
    run = chainrule.train(place.source, out=place / f"teacher-{seed}", settings=settings)
    return between(run.artifact, run.artifact, place)


def compressed(place: Place, name: str, of: Artifact | Run, to: str, **options: Any) -> Parity:
    _, done = chainrule.compress(of, place / name, to=to, data=place.source, options=options, **WIDE)
    return done.parity


def student(place: Place, name: str, kind: str, **settings: Any) -> Parity:
    _, done = chainrule.distill(
        place.teacher(), kind, place / name, data=place.source, kept=1e-6, allow_slower=True, settings=settings
    )
    return done.parity


def alone(place: Place, taught: str) -> Parity:
    """The same student, from the same start, with as many steps on the labelled rows alone; what it loses."""
    recipe = read_recipe(place / taught / "recipe.yaml")
    longer = (recipe.training.epochs or 1.0) * (1 + recipe.distillation.variants)  # made rows are left out
    recipe = recipe.replace({"distillation.teachers": [], "distillation.variants": 0, "training.epochs": longer})
    out = place / f"{taught}-alone"
    chainrule.train(recipe=recipe, out=out)
    return between(Run(place / taught).artifact, Run(out).artifact, place)


def soup(place: Place, method: str) -> Parity:
    _, done = chainrule.merge(
        [place.teacher(seed) for seed in range(SEEDS)], place / method, method=method, data=place.source,
        loss=100.0, worst=100.0,
    )  # fmt: skip
    return done.parity


def steps_of(place: Place) -> dict[str, Callable[[], Parity]]:
    """Everything that is made for one data set, in order."""
    found: dict[str, Callable[[], Parity]] = {"teacher-0": lambda: train_teacher(place, 0)}
    found["int8"] = lambda: compressed(place, "int8", place.teacher(), "int8")
    found["prune 60 %"] = lambda: compressed(place, "prune", place.teacher(), "prune", share=0.6)
    found["3 layers"] = lambda: student(place, "three", "self:3")
    found["3 layers, no teacher"] = lambda: alone(place, "three")
    found["3 layers, int8"] = lambda: compressed(place, "three-int8", Run(place / "three"), "int8")
    if place.data in READS_ROWS:
        found["lstm"] = lambda: student(place, "lstm", "lstm")
        found["lstm, no teacher"] = lambda: alone(place, "lstm")
    for seed in range(1, SEEDS):
        found[f"teacher-{seed}"] = partial(train_teacher, place, seed)
    found["average"] = lambda: soup(place, "average")
    found["greedy"] = lambda: soup(place, "greedy")
    return found


def results() -> list[dict[str, Any]]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return [json.loads(line) for line in lines]


def add(line: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def make(data: Sequence[str], folder: Path, only: Sequence[str] | None) -> None:
    known = {(line["data"], line["step"]) for line in results() if "metric" in line}
    for name in data:
        place = Place(name, folder / name)
        place.home.mkdir(parents=True, exist_ok=True)
        for step, act in steps_of(place).items():
            if (name, step) in known or (only and step not in only):
                continue
            began = time.perf_counter()
            found = act()
            kept = found.model_dump(include={"metric", "before", "after", "difference", "low", "high", "rows"})
            line = {"data": name, "step": step, **kept, "seconds": round(time.perf_counter() - began, 1)}
            add(line)
            print(line, flush=True)


@dataclass(frozen=True)
class Way:
    """Something that reads rows: all of them, or some.

    Attributes:
        read: the places of rows -> answers, from the texts on.
        megabytes: of its weights.
    """

    read: Callable[[np.ndarray], Any]
    megabytes: float


def size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in WEIGHTS) / 2**20


def by_chainrule(folder: Path, texts: Texts) -> Way:
    predictor = load_predictor(Artifact.read(folder), device="cpu")

    def read(places: np.ndarray) -> Any:
        some = {name: [values[place] for place in places.tolist()] for name, values in texts.items()}
        return predictor.predict(predictor.encode(some))

    return Way(read, size_of(folder))


def by_pipeline(folder: Path, task: str, texts: Texts, size: int) -> Way:
    """transformers' own way, in float32; texts one at a time, or `size` together in the order of the file."""
    name = "token-classification" if task == "token-classification" else "text-classification"
    known = pipeline(name, model=str(folder), device="cpu", dtype=torch.float32)
    rows: list[Any]
    if task == "token-classification":
        rows = [" ".join(json.loads(cell)) for cell in texts["tokens"]]
    elif len(texts) == 2:
        first, second = texts.values()
        rows = [{"text": one, "text_pair": other} for one, other in zip(first, second, strict=True)]
    else:
        rows = list(next(iter(texts.values())))
    how = {} if task == "token-classification" else {"truncation": True, "max_length": 128}
    return Way(
        lambda places: list(known([rows[place] for place in places.tolist()], batch_size=size, **how)), size_of(folder)
    )


def by_session(folder: Path, teacher: Path, texts: Texts, threads: int) -> Way:
    """ONNX Runtime with eight bits, as its own tool makes them of our graph: weights by output, inputs as they come."""
    graph, small = next(folder.rglob("*.onnx")), folder / "eight" / "eight.onnx"
    if not small.is_file():
        small.parent.mkdir()
        quantize_dynamic(graph, small, per_channel=True, reduce_range=False, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    predictor = load_predictor(Artifact.read(teacher), device="cpu")

    def read(places: np.ndarray) -> Any:
        some = {name: [values[place] for place in places.tolist()] for name, values in texts.items()}
        encoded, answers = predictor.encode(some), []
        for rows in by_length(encoded.lengths, BATCH_TOKENS):
            inputs = collate(encoded, rows, pad_id=0, left=False, device=torch.device("cpu")).inputs
            given = {name: values.numpy() for name, values in inputs.items()}
            given.setdefault("attention_mask", np.ones_like(given["input_ids"]))
            answers.append(session.run(None, {name: given[name] for name in names})[0])
        return answers

    return Way(read, size_of(small.parent))


def ways_of(place: Place, texts: Texts, threads: int) -> dict[str, Way]:
    teacher = place.teacher().path / "artifact"
    for to in ("hf", "onnx", "openvino"):
        if not (place / to).is_dir():
            chainrule.export(teacher, to, place / to)
    task = WORKLOADS[place.data].task
    found = {f"pipeline, float32, {size} together": by_pipeline(place / "hf", task, texts, size) for size in (1, 32)}
    found["ONNX Runtime, int8 (dynamic)"] = by_session(place / "onnx", teacher, texts, threads)
    found["OpenVINO"] = by_chainrule(place / "openvino", texts)
    found["itself"] = by_chainrule(teacher, texts)
    for step, name in MADE.items():
        folder = place / name
        if folder.is_dir():
            found[step] = by_chainrule(folder / "artifact" if (folder / "artifact").is_dir() else folder, texts)
    return found


def take_time(data: Sequence[str], folder: Path, rounds: int, threads: int) -> None:
    """All ways on the same rows, in turn; the first round warms up."""
    use_threads(threads)
    for name in data:
        place = Place(name, folder / name)
        rows = rows_of_split(load_predictor(place.teacher().artifact), place.source, "test", ROWS)
        texts = {field: list(values) for field, values in rows.inputs.items()}
        count = len(next(iter(texts.values())))
        ways = ways_of(place, texts, threads)
        many: dict[str, list[float]] = {way: [] for way in ways}
        alone: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, made in ways.items():
                began = time.perf_counter()
                made.read(np.arange(count))
                taken = time.perf_counter() - began
                singles = []
                for single in range(turn, count, max(1, count // SINGLES)):
                    began = time.perf_counter()
                    made.read(np.array([single]))
                    singles.append(1000 * (time.perf_counter() - began))
                if turn:
                    many[way].append(taken)
                    alone[way] += singles
        for way, made in ways.items():
            line = {"data": name, "way": way, "rows": count, "rounds": rounds, "threads": threads}
            line |= {"rows_per_second": round(count / median(many[way]), 1), "megabytes": round(made.megabytes, 1)}
            line |= {"p50": round(median(alone[way]), 2), "p95": round(float(np.quantile(alone[way], 0.95)), 2)}
            add(line)
            print(line, flush=True)


def report() -> None:
    """Two tables: what it costs in score, and what it brings."""
    lines = results()
    steps = {(line["data"], line["step"]): line for line in lines if "step" in line}
    speeds = {(line["data"], line["way"]): line for line in lines if "way" in line}
    names = list(dict.fromkeys(step for _, step in steps))
    data = [name for name in EPOCHS if any(where == name for where, _ in steps)]
    print("| | " + " | ".join(data) + " |\n|---|" + "---|" * len(data))
    for step in names:
        cells = [_score(steps.get((name, step))) for name in data]
        print(f"| {step} | " + " | ".join(cells) + " |")
    ways = list(dict.fromkeys(way for _, way in speeds))
    print("\n| | " + " | ".join(data) + " |\n|---|" + "---|" * len(data))
    for way in ways:
        print(f"| {way} | " + " | ".join(_speed(speeds, name, way) for name in data) + " |")


def _score(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    before, after = 100 * line["before"], 100 * line["after"]
    if before == after and line["low"] == line["high"] == 0.0:
        return f"{after:.1f}"
    return f"{before:.1f} → {after:.1f} ({100 * line['low']:+.1f} to {100 * line['high']:+.1f})"


def _speed(speeds: dict[tuple[str, str], dict[str, Any]], name: str, way: str) -> str:
    line, own = speeds.get((name, way)), speeds.get((name, "itself"))
    if line is None or own is None:
        return ""
    times = line["rows_per_second"] / own["rows_per_second"]
    single = own["p50"] / line["p50"]
    return f"{line['rows_per_second']:.0f} ({times:.2f}), {line['p50']:.1f} ms ({single:.2f}), {line['megabytes']:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "time", "report"])
    parser.add_argument("--data", nargs="+", default=list(EPOCHS))
    parser.add_argument("--folder", type=Path, default=Path("runs/smaller"))
    parser.add_argument("--only", nargs="+", help="of these steps alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.what == "make":
        make(options.data, options.folder, options.only)
    elif options.what == "time":
        take_time(options.data, options.folder, options.rounds, options.threads)
    else:
        report()


if __name__ == "__main__":
    main()
