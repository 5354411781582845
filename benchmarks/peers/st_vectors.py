"""sentence-transformers on texts that belong together or have a score, one seed, as its users fit it.

Nothing of Chainrule is used here. Scored pairs take CoSENTLoss, others MultipleNegativesRankingLoss; tokens become a
vector by their mean. `default` is the trainer as it comes, `tuned` is bfloat16 autocast. Prints one JSON line.

    python benchmarks/peers/st_vectors.py --model FOLDER --workload stsb_vectors --seed 0 --config tuned
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
from scipy.stats import spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from workloads import WORKLOADS, Workload

CONFIGS: dict[str, dict[str, Any]] = {"default": {}, "tuned": {"bf16": True, "optim": "adamw_torch_fused"}}


def read(workload: Workload, split: str) -> list[dict[str, str]]:
    with (workload.folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def columns(rows: list[dict[str, str]]) -> dict[str, list[Any]]:
    if "score" not in rows[0]:
        return {name: [row[name] for row in rows] for name in ("anchor", "positive")}
    scores = [float(row["score"]) for row in rows]
    top = max(scores)
    texts = {name: [row[name] for row in rows] for name in ("text_a", "text_b")}
    return texts | {"score": [score / top for score in scores]}


def score(workload: Workload, model: SentenceTransformer, rows: list[dict[str, str]]) -> float:
    """Spearman's correlation, or the mean of NDCG@10 where each row has one text to find among all different ones."""
    first, second, *_ = list(columns(rows).values())
    if workload.metric == "spearman":
        left, right = (model.encode(texts, normalize_embeddings=True) for texts in (first, second))
        return float(spearmanr((left * right).sum(1), [float(row["score"]) for row in rows]).statistic)
    found = sorted(set(second))
    cosines = model.encode(first, normalize_embeddings=True) @ model.encode(found, normalize_embeddings=True).T
    own = cosines[np.arange(len(first)), [found.index(text) for text in second]]
    ranks = (cosines >= own[:, None]).sum(1)
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--config", default="tuned", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    below = Transformer(options.model, max_seq_length=workload.max_length)
    model = SentenceTransformer(modules=[below, Pooling(below.get_embedding_dimension(), "mean")], device="cpu")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size,
            learning_rate=workload.learning_rate,
            num_train_epochs=workload.epochs,
            seed=options.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=Dataset.from_dict(columns(read(workload, "train"))),
        loss=(CoSENTLoss if workload.metric == "spearman" else MultipleNegativesRankingLoss)(model),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    result = {
        "trainer": f"hf-{options.config}",
        "workload": workload.name,
        "seed": options.seed,
        "epochs": workload.epochs,
        workload.metric: score(workload, model, read(workload, "test")),
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
