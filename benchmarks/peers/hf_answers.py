"""The Hugging Face Trainer on questions with a context, one seed, as the question-answering example of transformers.

Nothing of Chainrule is used here. Contexts are read in windows that share 128 tokens; a window without the answer
learns the first token; the answer is the best sum of a begin and an end among the 20 best of each, at most 30 tokens
long; F1 is that of SQuAD, the best over the answers of a row. Prints one JSON line.

    python benchmarks/peers/hf_answers.py --model FOLDER --workload xquad_en --seed 0 --config tuned
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import string
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DefaultDataCollator,
    Trainer,
    TrainingArguments,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from workloads import WORKLOADS, Workload

CONFIGS: dict[str, dict[str, Any]] = {"default": {}, "tuned": {"bf16": True, "optim": "adamw_torch_fused"}}
SHARED, CHOICES, LONGEST = 128, 20, 30  # tokens of two windows; begins and ends that are tried; tokens of an answer


def read(workload: Workload, split: str) -> list[dict[str, Any]]:
    with (workload.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Windows(Dataset[dict[str, Any]]):
    def __init__(self, tokenizer: Any, workload: Workload, rows: list[dict[str, Any]]) -> None:
        self.encoded = tokenizer(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=workload.max_length,
            stride=SHARED,
            padding="max_length",
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        self.row: list[int] = self.encoded.pop("overflow_to_sample_mapping")
        self.offsets: list[list[Any]] = [
            [pair if part == 1 else None for pair, part in zip(offsets, self.encoded.sequence_ids(place), strict=True)]
            for place, offsets in enumerate(self.encoded.pop("offset_mapping"))
        ]
        self.places = [self._place(window, rows[row]["answers"]) for window, row in enumerate(self.row)]

    def _place(self, window: int, answers: dict[str, list[Any]]) -> tuple[int, int]:
        start = answers["answer_start"][0]
        end = start + len(answers["text"][0])
        inside = [place for place, pair in enumerate(self.offsets[window]) if pair is not None]
        offsets = self.offsets[window]
        if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
            return 0, 0
        first = max(place for place in inside if offsets[place][0] <= start)
        return first, min(place for place in inside if offsets[place][1] >= end)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.places[index]
        row = {key: self.encoded[key][index] for key in self.encoded}
        return row | {"start_positions": start, "end_positions": end}


def answers_of(windows: Windows, starts: np.ndarray, ends: np.ndarray, rows: list[dict[str, Any]]) -> list[str]:
    best = [(-np.inf, "")] * len(rows)
    for window, row in enumerate(windows.row):
        offsets = windows.offsets[window]
        for start in np.argsort(-starts[window])[:CHOICES]:
            for end in np.argsort(-ends[window])[:CHOICES]:
                if offsets[start] is None or offsets[end] is None or not 0 <= end - start < LONGEST:
                    continue
                total = float(starts[window, start] + ends[window, end])
                if total > best[row][0]:
                    best[row] = total, rows[row]["context"][offsets[start][0] : offsets[end][1]]
    return [text for _, text in best]


def words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1(said: str, right: str) -> float:
    one, other = words(said), words(right)
    both = sum((Counter(one) & Counter(other)).values())
    return 2 * both / (len(one) + len(other)) if both else float(one == other)


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
    trainer = Trainer(
        model=AutoModelForQuestionAnswering.from_pretrained(options.model),
        args=TrainingArguments(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size,
            per_device_eval_batch_size=32,
            learning_rate=workload.learning_rate,
            num_train_epochs=workload.epochs,
            seed=options.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=Windows(tokenizer, workload, read(workload, "train")),
        data_collator=DefaultDataCollator(),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    test = read(workload, "test")
    windows = Windows(tokenizer, workload, test)
    starts, ends = (np.asarray(part) for part in trainer.predict(windows).predictions[:2])
    said = answers_of(windows, starts, ends, test)
    scores = [max(f1(text, right) for right in row["answers"]["text"]) for text, row in zip(said, test, strict=True)]
    result = {
        "trainer": f"hf-{options.config}",
        "workload": workload.name,
        "seed": options.seed,
        "epochs": workload.epochs,
        workload.metric: float(np.mean(scores)),
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
