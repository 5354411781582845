"""The Hugging Face Trainer on one workload, one seed: the peer that our runs are compared with.

Nothing of Chainrule is used here. `default` is the Trainer as it comes (float32, random batches); `tuned` is bfloat16
autocast, batches grouped by length and fused AdamW; the others are a grid around it. Prints one JSON line.

    python benchmarks/peers/hf_trainer.py --model FOLDER --workload mrpc --seed 0 --config tuned
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turn import Turns
from workloads import WORKLOADS, Workload

BEST = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
ATTENTION = ("sdpa", "eager")
CONFIGS: dict[str, dict[str, Any]] = {"default": {}, "tuned": {"bf16": True, **BEST}}
for way in ATTENTION:  # NUMBERS-ATTENTION: float32, bf16 autocast, or weights and optimizer in bfloat16
    CONFIGS[f"float32-{way}"] = CONFIGS[f"weights-{way}"] = BEST
    CONFIGS[f"autocast-{way}"] = {"bf16": True, **BEST}


class InTurns(TrainerCallback):  # type: ignore[misc]
    """Lets the coordinator of turns.py say when the next steps are made."""

    def __init__(self, steps: int) -> None:
        self.turns = Turns(steps)

    def on_step_begin(self, *arguments: Any, **more: Any) -> None:
        self.turns.step()


def read(workload: Workload, split: str) -> list[dict[str, str]]:
    with (workload.folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def targets(workload: Workload, rows: list[dict[str, str]], names: list[str]) -> list[Any]:
    if workload.task == "regression":
        return [float(row["score"]) for row in rows]
    if workload.task == "multi-label-classification":
        return [[float(name in row["labels"].split("|")) for name in names] for row in rows]
    return [names.index(row["label"]) for row in rows]


def label_names(workload: Workload, rows: list[dict[str, str]]) -> list[str]:
    if workload.task == "regression":
        return ["score"]
    if workload.task == "multi-label-classification":
        return sorted({name for row in rows for name in row["labels"].split("|") if name})
    return sorted({row["label"] for row in rows})


class Encoded(Dataset[dict[str, Any]]):
    def __init__(self, tokenizer: Any, workload: Workload, rows: list[dict[str, str]], names: list[str]) -> None:
        texts = [row.get("text") or row["text_a"] for row in rows]
        pairs = [row["text_b"] for row in rows] if "text_b" in rows[0] else None
        self.encoded = tokenizer(texts, pairs, truncation=True, max_length=workload.max_length)
        self.labels = targets(workload, rows, names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: self.encoded[key][index] for key in self.encoded} | {"labels": self.labels[index]}


def score(workload: Workload, logits: np.ndarray, labels: np.ndarray) -> float:
    if workload.metric == "spearman":
        return float(spearmanr(logits[:, 0], labels).statistic)
    if workload.metric == "micro_f1":
        return float(f1_score(labels, logits > 0, average="micro", zero_division=0))
    return float(accuracy_score(labels, logits.argmax(-1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--config", default="tuned", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=0, help="steps of a turn; see turns.py")
    parser.add_argument("--predictions", type=Path, help="write one test prediction a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload = WORKLOADS[options.workload]
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, test = read(workload, "train"), read(workload, "test")
    names = label_names(workload, train)
    problem = {
        "regression": "regression",
        "multi-label-classification": "multi_label_classification",
        "text-classification": "single_label_classification",
    }[workload.task]
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        num_labels=len(names),
        problem_type=problem,
        attn_implementation="eager" if options.config.endswith("eager") else "sdpa",
        dtype=torch.bfloat16 if options.config.startswith("weights") else torch.float32,
    )
    if workload.top:
        model.base_model.requires_grad_(False)
        for part in (*model.base_model.encoder.layer[-workload.top :], model.base_model.pooler):
            part.requires_grad_(True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=workload.learning_rate,
            num_train_epochs=workload.epochs,
            max_steps=1_000_000 if options.turns else -1,
            seed=options.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=Encoded(tokenizer, workload, train, names),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[InTurns(options.turns)] if options.turns else [],
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    result = trainer.predict(Encoded(tokenizer, workload, test, names))
    logits, labels = np.asarray(result.predictions), np.asarray(result.label_ids)
    if options.predictions:
        options.predictions.write_text("\n".join(map(str, logits.argmax(-1).tolist())), encoding="utf-8")
    print(
        json.dumps(
            {
                "trainer": f"hf-{options.config}",
                "workload": workload.name,
                "seed": options.seed,
                "epochs": workload.epochs,
                workload.metric: score(workload, logits, labels),
                "seconds": seconds,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
