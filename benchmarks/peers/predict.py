"""Predicting with a text classifier, by other tools: transformers' pipeline, and OpenVINO in bfloat16.

Nothing of Chainrule is used here but the folder that it saved. A turn is 600 texts of ag_news.

    python benchmarks/peers/predict.py --name pipeline-32 --artifact FOLDER --turns 1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turn import Turns
from workloads import texts_to_predict

BATCH = 32


def by_pipeline(folder: str, size: int) -> Callable[[list[str]], Any]:
    """transformers' own way, one text at a time or in batches."""
    classify = pipeline("text-classification", model=folder, device="cpu")
    return lambda rows: classify(rows, batch_size=size, truncation=True, max_length=128)


def by_openvino(folder: str) -> Callable[[list[str]], Any]:
    """OpenVINO's compiled model in bfloat16, with batches sorted by length."""
    import openvino as ov

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    example = dict(tokenizer(["a text", "another one"], return_tensors="pt", padding=True))
    names = list(example)
    with torch.no_grad():
        converted = ov.convert_model(model, example_input=example)
    compiled = ov.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "1"}
    )

    def predict(rows: list[str]) -> list[int]:
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        labels = [0] * len(rows)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            encoded = tokenizer(
                [rows[number] for number in part], truncation=True, max_length=128, padding=True, return_tensors="np"
            )
            logits = compiled({name: encoded[name] for name in names})[0]
            for number, label in zip(part, logits.argmax(-1), strict=True):
                labels[number] = int(label)
        return labels

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, choices=["pipeline", "pipeline-32", "openvino"])
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args()
    if options.name == "openvino":
        predict = by_openvino(options.artifact)
    else:
        predict = by_pipeline(options.artifact, BATCH if options.name.endswith("32") else 1)
    rows, turns = texts_to_predict(), Turns(options.turns)
    while True:
        turns.step()
        predict(rows)


if __name__ == "__main__":
    main()
