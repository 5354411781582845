"""Made-up rows that can be learned: the words of a text decide its label."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD = ("good", "great", "lovely", "brilliant", "warm", "clever")
BAD = ("bad", "awful", "dull", "broken", "cold", "silly")
PLAIN = (
    "the",
    "a",
    "film",
    "book",
    "room",
    "phone",
    "was",
    "is",
    "and",
    "very",
    "really",
    "of",
    "it",
    "this",
    "we",
    "had",
)
WORDS = (*GOOD, *BAD, *PLAIN)


def sentences(rows: int, *, seed: int = 0, labels: Sequence[str] = ("negative", "positive")) -> list[dict[str, str]]:
    """Rows with `text` and `label`; the label is what most of the telling words say."""
    generator = random.Random(seed)
    made = []
    for _ in range(rows):
        side = generator.randrange(2)
        telling = generator.choices((BAD, GOOD)[side], k=2)
        words = [*telling, *generator.choices(PLAIN, k=generator.randint(3, 12))]
        generator.shuffle(words)
        made.append({"text": " ".join(words), "label": labels[side]})
    return made


def pairs(rows: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows with `text_a`, `text_b` and `label`: same or different in tone."""
    first, second = sentences(rows, seed=seed), sentences(rows, seed=seed + 1)
    return [
        {"text_a": a["text"], "text_b": b["text"], "label": "same" if a["label"] == b["label"] else "different"}
        for a, b in zip(first, second, strict=True)
    ]


def rated(rows: int, *, seed: int = 0, mean: float = 3.0, scale: float = 1.0) -> list[dict[str, str]]:
    """Rows with `text` and `score`: the share of good words, in any unit."""
    generator = random.Random(seed)
    made = []
    for row in sentences(rows, seed=seed):
        side = 1.0 if row["label"] == "positive" else -1.0
        made.append({"text": row["text"], "score": f"{mean + scale * (side + generator.gauss(0, 0.1)):.4f}"})
    return made


def tagged(rows: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows with `text` and `labels` joined by "|": the tone, and "film" where the word stands in the text."""
    return [
        {"text": row["text"], "labels": row["label"] + ("|film" if "film" in row["text"].split() else "")}
        for row in sentences(rows, seed=seed)
    ]


def entities(rows: int, *, seed: int = 0) -> list[dict[str, list[str]]]:
    """Rows with `tokens` and `tags`: every good word is a PRAISE, every bad one a BLAME."""
    kinds = dict.fromkeys(GOOD, "B-PRAISE") | dict.fromkeys(BAD, "B-BLAME")
    texts = [row["text"].split() for row in sentences(rows, seed=seed)]
    return [{"tokens": words, "tags": [kinds.get(word, "O") for word in words]} for words in texts]


def questions(rows: int, *, seed: int = 0, unanswerable: bool = False) -> list[dict[str, Any]]:
    """Rows with `question`, `context` and `answers`: asked is the first good or bad word of a sentence.

    Args:
        unanswerable: whether every third sentence is to have no such word, and so no answer.
    """
    made = []
    for number, row in enumerate(sentences(rows, seed=seed)):
        words = row["text"].split()
        if unanswerable and number % 3 == 0:
            words = [word for word in words if word not in GOOD + BAD]
        place = next((place for place, word in enumerate(words) if word in GOOD + BAD), None)
        found = [] if place is None else [(words[place], len(" ".join([*words[:place], ""])))]
        answers = {"text": [text for text, _ in found], "answer_start": [start for _, start in found]}
        made.append({"question": "was it", "context": " ".join(words), "answers": answers})
    return made


def reversals(rows: int, *, seed: int = 0, words: int = 4) -> list[dict[str, str]]:
    """Rows with `source` and `target`: two words or more, at most so many, and the same from the last to the first."""
    generator = random.Random(seed)
    said = [generator.choices(GOOD + BAD, k=generator.randint(2, words)) for _ in range(rows)]
    return [{"source": " ".join(each), "target": " ".join(reversed(each))} for each in said]


def replies(folder: Path) -> Path:
    """Write `train.jsonl` (96 rows) and `validation.jsonl` (40) with `instruction` and `output`; return their folder.

    A reply repeats the telling word of its instruction.
    """
    words = ("good", "bad", "warm", "cold", "clever", "silly", "great", "dull")
    places = ("film", "book", "room", "phone", "a", "the", "it", "we", "this", "very", "and", "of")
    for name, few, between in (("train", places, ""), ("validation", places[:5], "is ")):
        rows = [
            {"instruction": f"{place} {between}{word}", "output": f"very {word}"} for place in few for word in words
        ]
        write_json_lines(folder / f"{name}.jsonl", rows)
    return folder


def stripes(folder: Path, rows: int, *, seed: int = 0, side: int = 16) -> Path:
    """Write images with one bright stripe across or down, `labels.csv` with `image` and `label`, and return that."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(rows):
        pixels, label = generator.integers(0, 90, (side, side)), ("across", "down")[int(generator.integers(2))]
        start = int(generator.integers(1, side - 3))
        pixels[start : start + 2] = 230
        image = Image.fromarray((pixels if label == "across" else pixels.T).astype(np.uint8))
        image.save(folder / f"{number}.png")
        made.append({"image": f"{number}.png", "label": label})
    return write_csv(folder / "labels.csv", made)


def searches(lists: int, *, seed: int = 0, candidates: int = 4) -> list[dict[str, Any]]:
    """Rows with `query`, `item` and `relevance`: of each query's candidates the one with good words is relevant."""
    generator = random.Random(seed)
    queries = list(permutations(PLAIN, 3))
    made = []
    for query in generator.sample(queries, lists):
        best = generator.randrange(candidates)
        for place in range(candidates):
            telling = generator.choices(GOOD if place == best else BAD, k=2)
            item = " ".join([*telling, *generator.sample(PLAIN, 4)])
            made.append({"query": " ".join(query), "item": item, "relevance": int(place == best)})
    return made


def tastes(folder: Path, *, users: int = 40, items: int = 30, seed: int = 0) -> Path:
    """A folder of interactions: half of the users like items with good words, the others those with bad ones.

    Each user has rated ten items, the last two of them in test and the two before in validation.
    """
    generator = random.Random(seed)
    texts = {f"i{n}": " ".join(generator.sample(GOOD if n % 2 else BAD, 3)) + f" {PLAIN[n % 16]}" for n in range(items)}
    write_csv(folder / "items.csv", [{"item_id": name, "text": text} for name, text in texts.items()])
    write_csv(folder / "users.csv", [{"user_id": f"u{n}", "likes": "very" if n % 2 else "the"} for n in range(users)])
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for user in range(users):
        own = [generator.sample([n for n in range(items) if n % 2 == side], 5) for side in (0, 1)]
        order = [number for both in zip(*own, strict=True) for number in both]
        for time, number in enumerate(order):
            rating = "5" if number % 2 == user % 2 else "2"
            split = "test" if time > 7 else "validation" if time > 5 else "train"
            row = {
                "user_id": f"u{user}",
                "item_id": f"i{number}",
                "rating": rating,
                "timestamp": f"{100 * time + user}",
            }
            splits[split].append(row)
    for name, rows in splits.items():
        write_csv(folder / f"{name}.csv", rows)
    return folder


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write rows as CSV with a header and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_many(path: Path, rows: int) -> Path:
    """Write rows of about 100 bytes as CSV or JSON Lines, no two texts alike and four labels, and return the path."""
    texts = [row["text"] for row in sentences(1000)]
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n" if path.suffix == ".csv" else "")
        for row in range(rows):
            text, label = (
                f"{texts[row % 1000]} {texts[row // 1000 % 1000]} {row}",
                ("dull", "fair", "fine", "grand")[row % 4],
            )
            file.write(
                f"{text},{label}\n" if path.suffix == ".csv" else json.dumps({"text": text, "label": label}) + "\n"
            )
    return path
