"""The cross-encoder of sentence-transformers on queries with candidates, one seed, as its users fit it.

Nothing of Chainrule is used here. Every pair of a query and a candidate is a row with the relevance as its label
(BinaryCrossEntropyLoss); a batch has as many pairs as the lists of ours have. The mean of NDCG@10 over the queries of
test is scikit-learn's. `default` is the trainer as it comes, `tuned` is bfloat16 autocast. Prints one JSON line.

    python benchmarks/peers/st_pairs.py --model FOLDER --workload xquad_search --seed 0 --config tuned
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
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sklearn.metrics import ndcg_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from workloads import CANDIDATES, WORKLOADS, Workload

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"bf16": True, "optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length"},
}


def read(workload: Workload, split: str) -> list[dict[str, str]]:
    with (workload.folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def score(model: CrossEncoder, rows: list[dict[str, str]]) -> float:
    said = model.predict([(row["query"], row["item"]) for row in rows], show_progress_bar=False)
    lists: dict[str, list[tuple[float, float]]] = {}
    for row, value in zip(rows, said, strict=True):
        lists.setdefault(row["query"], []).append((float(row["relevance"]), float(value)))
    each = [ndcg_score([[right for right, _ in few]], [[value for _, value in few]], k=10) for few in lists.values()]
    return float(np.mean(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--config", default="tuned", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    model = CrossEncoder(options.model, num_labels=1, max_length=workload.max_length, device="cpu")
    train = read(workload, "train")
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size * CANDIDATES["train"],
            learning_rate=workload.learning_rate,
            num_train_epochs=workload.epochs,
            seed=options.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=Dataset.from_dict(
            {"query": [row["query"] for row in train], "item": [row["item"] for row in train]}
            | {"label": [float(row["relevance"]) for row in train]}
        ),
        loss=BinaryCrossEntropyLoss(model),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    result = {
        "trainer": f"hf-{options.config}",
        "workload": workload.name,
        "seed": options.seed,
        "epochs": workload.epochs,
        workload.metric: score(model, read(workload, "test")),
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
