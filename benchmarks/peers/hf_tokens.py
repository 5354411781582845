"""The Hugging Face Trainer on words with tags, one seed, as the token-classification example of transformers does it.

Nothing of Chainrule is used here. A word's tag is learned at its first token; scores are seqeval's, over the words that
are left within `max_length`; a word that is cut off counts as outside. Prints one JSON line.

    python benchmarks/peers/hf_tokens.py --model FOLDER --workload conll2003pp --seed 0 --config tuned
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seqeval.metrics import f1_score
from torch.utils.data import Dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from workloads import WORKLOADS, Workload

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"},
}


def read(workload: Workload, split: str) -> list[dict[str, Any]]:
    with (workload.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Encoded(Dataset[dict[str, Any]]):
    def __init__(self, tokenizer: Any, workload: Workload, rows: list[dict[str, Any]], names: list[str]) -> None:
        words = [row["tokens"] for row in rows]
        self.encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=workload.max_length)
        self.labels = []
        for place, row in enumerate(rows):
            before, labels = None, []
            for word in self.encoded.word_ids(place):
                first = word is not None and word != before
                labels.append(names.index(row["ner_tags"][word]) if first else -100)
                before = word
            self.labels.append(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: self.encoded[key][index] for key in self.encoded} | {"labels": self.labels[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--config", default="tuned", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, test = read(workload, "train"), read(workload, "test")
    names = sorted({tag for row in train for tag in row["ner_tags"]})
    trainer = Trainer(
        model=AutoModelForTokenClassification.from_pretrained(options.model, num_labels=len(names)),
        args=TrainingArguments(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=workload.learning_rate,
            num_train_epochs=workload.epochs,
            seed=options.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=Encoded(tokenizer, workload, train, names),
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    rows = Encoded(tokenizer, workload, test, names)
    trainer.args.train_sampling_strategy = "random"  # grouped by length, predictions would come in another order
    said = np.asarray(trainer.predict(rows).predictions).argmax(-1)
    predicted = []
    for row, tags, labels in zip(test, said.tolist(), rows.labels, strict=True):
        found = [names[tag] for tag, label in zip(tags, labels, strict=False) if label != -100]
        predicted.append(found + ["O"] * (len(row["tokens"]) - len(found)))
    result = {
        "trainer": f"hf-{options.config}",
        "workload": workload.name,
        "seed": options.seed,
        "epochs": workload.epochs,
        workload.metric: float(f1_score([row["ner_tags"] for row in test], predicted)),
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
