"""A BiLSTM of plain PyTorch under the Hugging Face Trainer, one seed, on a text classification in Chinese.

Nothing of Chainrule is used here. Characters that train has twice, embeddings of 128 numbers, one layer of 128 states
each way over packed rows, the maximum over a row's states, dropout of 0.5: the sizes that ours has by default, with
PyTorch's own initial weights. `default` is the Trainer as it comes, `tuned` is batches grouped by length and fused
AdamW (bfloat16 gains nothing here). The best epoch on validation is kept, as ours does. Prints one JSON line.

    python benchmarks/peers/hf_lstm.py --workload thucnews_lstm --seed 0 --config tuned
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from workloads import WORKLOADS, Workload

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"},
}
EMBEDDING, STATES, DROPOUT, UNKNOWN = 128, 128, 0.5, 1


def read(workload: Workload, split: str) -> list[dict[str, str]]:
    with (workload.folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Characters(Dataset[dict[str, Any]]):
    def __init__(self, workload: Workload, split: str, places: dict[str, int], names: list[str]) -> None:
        rows = read(workload, split)
        self.ids = [[places.get(one, UNKNOWN) for one in row["text"]][: workload.max_length] for row in rows]
        self.labels = [names.index(row["label"]) for row in rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING, padding_idx=0)
        self.lstm = nn.LSTM(EMBEDDING, STATES, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * STATES, classes)

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        packed = pack_padded_sequence(
            self.dropout(self.embedding(input_ids)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=-torch.inf)[0]
        logits = self.head(self.dropout(states.amax(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(row["input_ids"] or [UNKNOWN]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "lengths": torch.tensor([len(row) for row in ids]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def accuracy(said: Any) -> dict[str, float]:
    return {"accuracy": float((said.predictions.argmax(-1) == said.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="not used: it is made here")
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--config", default="tuned", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    set_seed(options.seed)
    rows = read(workload, "train")
    counts = Counter(one for row in rows for one in row["text"])
    places = {one: place + 2 for place, one in enumerate(sorted(one for one, count in counts.items() if count > 1))}
    names = sorted({row["label"] for row in rows})
    train, validation, test = (Characters(workload, split, places, names) for split in ("train", "validation", "test"))
    trainer = Trainer(
        model=Classifier(len(places) + 2, len(names)),
        args=TrainingArguments(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size,
            per_device_eval_batch_size=256,
            learning_rate=workload.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            num_train_epochs=workload.epochs,
            seed=options.seed,
            eval_strategy="epoch",
            save_strategy="best",
            metric_for_best_model="accuracy",
            load_best_model_at_end=True,
            save_total_limit=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
        compute_metrics=accuracy,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.args.train_sampling_strategy = "random"  # grouped by length, predictions would come in another order
    logits = np.asarray(trainer.predict(test).predictions)
    result = {
        "trainer": f"hf-{options.config}",
        "workload": workload.name,
        "seed": options.seed,
        "epochs": workload.epochs,
        workload.metric: float((logits.argmax(-1) == test.labels).mean()),
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
