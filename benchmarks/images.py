"""Small networks for images from scratch: with augmentation, without, and transformers' Trainer with the same network.

The Trainer has the same processor, network, batch, epochs, learning rate and schedule; it draws its own weights and
order. Digits are scikit-learn's, written as images, 1,000 for training. Each line of results is a run.

    python benchmarks/images.py --seeds 3
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments

import chainrule
from chainrule.core.recipe import Structure
from chainrule.models.convnet import EPOCHS, LEARNING_RATE, Options, make_classifier, processor_of
from chainrule.system.images import open_image

RESULTS = Path(__file__).resolve().parent / "results" / "images.jsonl"
TASK, BATCH = "image-classification", 32
LABELS = ("chainrule", "chainrule, no augmentation", "transformers Trainer")


def digits(folder: Path) -> Path:
    """scikit-learn's digits as PNG files by split and class."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    for split, rows in (("train", order[:1000]), ("validation", order[1000:1200]), ("test", order[1200:])):
        for row in rows.tolist():
            place = folder / split / str(data.target[row])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[row] * 15.9).astype(np.uint8)).save(place / f"{row}.png")
    return folder


def images_of(source: Path, split: str) -> tuple[list[str], list[str]]:
    """Paths and labels of a split."""
    if (source / f"{split}.csv").is_file():
        with (source / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [str(source / row["image"]) for row in rows], [row["label"] for row in rows]
    paths = sorted((source / split).glob("*/*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


def ours(source: Path, out: Path, seed: int, threads: int, *, augmented: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"task": TASK, "seed": seed, "training.threads": threads, "training.batch_size": BATCH}
    if not augmented:
        settings["task.options.augmentation"] = None
    run = chainrule.train(str(source), out=out, settings=settings)
    report = chainrule.evaluate(run, split="test")
    return {
        "accuracy": report.metrics["accuracy"].value,
        "pixels": report.baselines["pixels"]["accuracy"].value,
        "seconds": run.summary["seconds"],
    }


def peer(source: Path, out: Path, seed: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    paths, labels = images_of(source, "train")
    processor, options = processor_of(Options(), {"image": paths})
    names = sorted(set(labels))
    model, _ = make_classifier(options, processor, names, "single_label_classification", Structure(), seed=seed)

    def rows_of(split: str) -> Dataset:
        files, said = images_of(source, split)
        pixels = processor(images=[open_image(file) for file in files], return_tensors="np")["pixel_values"]
        return Dataset.from_dict({"pixel_values": pixels, "labels": [names.index(name) for name in said]}).with_format(
            "torch"
        )

    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        warmup_steps=0.1,
        seed=seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )

    def measure(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    trainer = Trainer(
        model, arguments, train_dataset=rows_of("train"), eval_dataset=rows_of("validation"), compute_metrics=measure
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {"accuracy": trainer.evaluate(rows_of("test"))["eval_accuracy"], "seconds": seconds}


def run_one(label: str, source: Path, out: Path, seed: int, threads: int) -> dict[str, Any]:
    if label == LABELS[2]:
        return peer(source, out, seed, threads)
    return ours(source, out, seed, threads, augmented=label == LABELS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    given = Path(os.environ.get("CHAINRULE_TEST_DATA", "../shared/data"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sources = {"mnist_mini": given / "mnist_mini", "digits": digits(place / "digits")}
        for seed in range(options.seeds):
            for name, source in sources.items():
                out = place / f"{name}-{seed}"
                for label in LABELS:
                    found = {"data": name, "seed": seed, "label": label}
                    found |= run_one(label, source, out.with_suffix(f".{LABELS.index(label)}"), seed, options.threads)
                    print(json.dumps(found), flush=True)
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
