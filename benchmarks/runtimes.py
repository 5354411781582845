"""One fine-tuned classifier in eight bits by several libraries, beside their floating point: speed, score, size.

Every way reads the same batches: rows sorted by length, 32 together, padded to the longest of them. The ways take
turns; what is shown is the median over rounds. Each line is added to benchmarks/results/runtimes.jsonl. `chainrule …`
is what `chainrule export` and `compress` write, run as Chainrule runs it; the others are the libraries' own ways:
onnxruntime.quantization (dynamic, a scale for each output, `--reduce` for processors without VNNI) and torchao (eight
bits for activations as they come). Needs `pip install -e '.[bench,int8,onnx]' torchao`.

    python benchmarks/runtimes.py --run runs/reviews --data reviews/ --rounds 5
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import AutoModelForSequenceClassification

import chainrule
from chainrule.core.artifact import Artifact, Run
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded
from chainrule.inference.predict import load_predictor
from chainrule.inference.rows import open_rows
from chainrule.system.device import use_threads

ROWS = 32  # of a batch
Batch = dict[str, np.ndarray]
Answer = Callable[[Sequence[Batch]], list[np.ndarray]]


@dataclass(frozen=True)
class Way:
    """Reads batches, and gives the logits of each."""

    answer: Answer
    megabytes: float


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files) / 2**20


_WEIGHTS = (".safetensors", ".bin", ".onnx", ".data")


def by_chainrule(folder: Path) -> Way:
    forward = load_predictor(Artifact.read(folder)).forward

    def answer(batches: Sequence[Batch]) -> list[np.ndarray]:
        with torch.inference_mode(), forward.autocast():
            found = [forward.model(**{n: torch.from_numpy(v) for n, v in each.items()}).logits for each in batches]
        return [logits.float().numpy() for logits in found]

    return Way(answer, size_of(folder))


def by_torch(folder: Path, *, bfloat16: bool, torchao: bool) -> Way:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16 if bfloat16 else None)
    model.eval()
    if torchao:
        quantize_(model, Int8DynamicActivationInt8WeightConfig())

    def answer(batches: Sequence[Batch]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = [model(**{n: torch.from_numpy(v) for n, v in each.items()}).logits for each in batches]
        return [logits.float().numpy() for logits in found]

    return Way(answer, size_of(folder))


def by_onnx(file: Path, threads: int) -> Way:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def answer(batches: Sequence[Batch]) -> list[np.ndarray]:
        return [session.run(None, {name: each[name] for name in names})[0] for each in batches]

    return Way(answer, size_of(file.parent) if file.name == "model.onnx" else size_of(file))


def ways_of(run: Run, data: str, folder: Path, threads: int, *, reduce: bool) -> dict[str, Way]:
    """All of them, made here."""
    plain, onnx, openvino = (chainrule.export(run, to, folder / to)[0].path for to in ("hf", "onnx", "openvino"))
    chainrule.compress(run, folder / "int8", data=data, allow_slower=True, loss=5.0, worst=10.0)
    graph, eight = next(onnx.rglob("*.onnx")), folder / "eight.onnx"
    quantize_dynamic(graph, eight, per_channel=True, reduce_range=reduce, weight_type=QuantType.QInt8)
    return {
        "chainrule, torch": by_chainrule(run.path / "artifact"),
        "transformers float32": by_torch(plain, bfloat16=False, torchao=False),
        "transformers bfloat16": by_torch(plain, bfloat16=True, torchao=False),
        "torchao int8": by_torch(plain, bfloat16=False, torchao=True),
        "ONNX Runtime float32": by_onnx(graph, threads),
        "ONNX Runtime int8": by_onnx(eight, threads),
        "chainrule, OpenVINO": by_chainrule(openvino),
        "chainrule, int8 (NNCF, OpenVINO)": by_chainrule(folder / "int8"),
    }


def batches_of(run: Run, rows: Path) -> tuple[list[Batch], np.ndarray]:
    """Batches of sorted rows, and where in the file their rows stand."""
    predictor = load_predictor(Artifact.read(run.path / "artifact"))
    texts: dict[str, list[str]] = {}
    for _, part in open_rows(predictor, str(rows), {}):
        for name, values in part.items():
            texts.setdefault(name, []).extend(values)
    encoded: Encoded = predictor.encode(texts)
    order = np.argsort(encoded.lengths, kind="stable")
    found = []
    for start in range(0, len(order), ROWS):
        batch = collate(encoded, order[start : start + ROWS], pad_id=0, left=False, device=torch.device("cpu"))
        inputs = {name: values.numpy() for name, values in batch.inputs.items()}
        found.append({"attention_mask": np.ones_like(inputs["input_ids"]), **inputs})
    return found, order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run: a classifier of texts")
    parser.add_argument("--data", type=Path, required=True, help="its data, a folder with test.csv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reduce", action="store_true")
    options = parser.parse_args()
    use_threads(options.threads)
    run = Run(options.run)
    batches, order = batches_of(run, options.data / "test.csv")
    labels = Artifact.read(run.path / "artifact").manifest.labels
    right = np.array([labels.index(row["label"]) for row in _csv(options.data / "test.csv")])[order]
    with tempfile.TemporaryDirectory() as name:
        ways = ways_of(run, str(options.data), Path(name), options.threads, reduce=options.reduce)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        scores = {}
        for number in range(options.rounds + 1):  # the first warms up
            for way, made in ways.items():
                began = time.perf_counter()
                said = made.answer(batches)
                if number:
                    seconds[way].append(time.perf_counter() - began)
                scores[way] = float((np.concatenate(said).argmax(-1) == right).mean())
    results = Path(__file__).resolve().parent / "results" / "runtimes.jsonl"
    print("| way | rows a second | accuracy | MB |\n|---|---|---|---|")
    for way, made in ways.items():
        rate = len(right) / median(seconds[way])
        line: dict[str, Any] = {"data": options.data.name, "way": way, "rows_per_second": round(rate, 1)}
        line |= {"accuracy": round(scores[way], 5), "megabytes": round(made.megabytes, 1), "rounds": options.rounds}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"| {way} | {rate:.0f} | {100 * scores[way]:.1f} | {made.megabytes:.0f} |", flush=True)


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
