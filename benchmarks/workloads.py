"""The data sets, epochs, batch sizes and learning rates that every trainer under test is given.

Both our runs and the peers' runs read this one table, so that a comparison cannot drift apart.
"""

from __future__ import annotations

import csv
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

DATA = Path(os.environ.get("CHAINRULE_TEST_DATA", "../shared/data"))
MADE = Path(__file__).resolve().parent / "data"  # what is put together from them; not in the repository
CHATS = 64  # rows of a turn of the chat workload
PREDICTED = 600  # and of prediction
CANDIDATES = {"train": 5, "validation": 20, "test": 20}  # contexts that a question of xquad_search is ranked among


@dataclass(frozen=True)
class Workload:
    """One data set with the settings that are the same for every trainer.

    Attributes:
        top: only the top layers of this number are trained, and the head; 0 for all layers.
        data: the data set's name where that is not the workload's.
    """

    name: str
    task: str
    metric: str
    epochs: float
    learning_rate: float = 5e-5
    batch_size: int = 32
    max_length: int = 128
    model: str = "minilm"
    top: int = 0
    data: str = ""

    @property
    def folder(self) -> Path:
        made = {
            "long_documents": long_documents,
            "dialogsum_vectors": summaries_and_dialogues,
            "xquad_search": questions_and_contexts,
        }
        return made[self.name]() if self.name in made else DATA / (self.data or self.name)


# Part of an epoch of the large sets: enough to compare trainers, little enough to do it often.
WORKLOADS = {
    w.name: w
    for w in (
        Workload("trec", "text-classification", "accuracy", 2),
        Workload("sst2", "text-classification", "accuracy", 2),
        Workload("mrpc", "text-classification", "accuracy", 3),
        Workload("banking77", "text-classification", "accuracy", 2, learning_rate=1e-4),
        Workload("stsb", "regression", "spearman", 3),
        Workload("goemotions", "multi-label-classification", "micro_f1", 0.25),
        Workload("ocnli", "text-classification", "accuracy", 0.25),
        Workload("chnsenticorp", "text-classification", "accuracy", 0.5),
        Workload("thucnews_lstm", "text-classification", "accuracy", 10, 1e-3, model="lstm", data="thucnews_title"),
        Workload("long_documents", "text-classification", "accuracy", 2, batch_size=8, max_length=512),
        Workload("conll2003pp", "token-classification", "f1", 2, learning_rate=1e-4),
        Workload("xquad_en", "question-answering", "f1", 8, 1e-4, 16, 384),
        Workload("stsb_vectors", "sentence-similarity", "spearman", 2, data="stsb"),
        Workload("dialogsum_vectors", "embedding", "ndcg@10", 4, max_length=256),
        Workload("xquad_search", "ranking", "ndcg@10", 2, 2e-4, 8),  # a batch is of lists
        Workload("ag_news", "text-classification", "accuracy", 5, top=2),
        Workload("alpaca_gpt4_en", "text-generation", "loss", 1, 2e-4, 8, 512, "smollm2"),
    )
}


def texts_to_predict() -> list[str]:
    """The first rows of ag_news' test split."""
    with (DATA / "ag_news" / "test.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)][:PREDICTED]


def long_documents() -> Path:
    """Documents of 5 to 9 news items of one class, joined: 256 to 512 tokens mostly. Made once from ag_news.

    The items keep their order in the file and their split, each is used once, and seed 0 decides how many make a
    document: 790 rows to train on, 80 to validate, 170 to test, roughly.
    """
    target = MADE / "long_documents"
    for split in ("train", "validation", "test"):
        path = target / f"{split}.csv"
        if path.is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        with (DATA / "ag_news" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            items = list(csv.DictReader(file))
        rows, draw = [], random.Random(0)
        for label in sorted({item["label"] for item in items}):
            texts = [item["text"] for item in items if item["label"] == label]
            while texts:
                count = draw.randint(5, 9)
                rows.append((" ".join(texts[:count]), label))
                texts = texts[count:]
        draw.shuffle(rows)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return target


def summaries_and_dialogues() -> Path:
    """The summary of a dialogue of dialogsum, and the dialogue that is to be found for it. Made once."""
    target = MADE / "dialogsum_vectors"
    for split in ("train", "validation", "test"):
        path = target / f"{split}.csv"
        if path.is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        with (DATA / "dialogsum" / f"{split}.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("anchor", "positive"), *((row["target"], row["source"]) for row in rows)])
    return target


def questions_and_contexts() -> Path:
    """Each question of xquad_en with its context and others of the same split, drawn by seed 0. Made once."""
    target = MADE / "xquad_search"
    for split, count in CANDIDATES.items():
        path = target / f"{split}.csv"
        if path.is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        with (DATA / "xquad_en" / f"{split}.jsonl").open(encoding="utf-8") as file:
            pairs = [(row["question"], row["context"]) for row in map(json.loads, file)]
        contexts, draw, lines = sorted({context for _, context in pairs}), random.Random(0), []
        for question, own in dict(pairs).items():
            others = draw.sample([context for context in contexts if context != own], count - 1)
            lines += [(question, own, 1), *((question, context, 0) for context in others)]
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("query", "item", "relevance"), *lines])
    return target
