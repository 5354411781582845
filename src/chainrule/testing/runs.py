"""A finished run of every task, in seconds: rows that are made up, a model of two small layers, a few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chainrule
from chainrule.core.artifact import Run
from chainrule.testing.data import (
    entities,
    pairs,
    questions,
    rated,
    reversals,
    searches,
    sentences,
    stripes,
    tagged,
    write_csv,
    write_json_lines,
)
from chainrule.testing.models import tiny_chat_model, tiny_encoder_decoder, tiny_model, tiny_vision_model

REPLIES = [
    {"instruction": f"{place} {word}", "output": f"very {word}"}
    for place in ("film", "book", "room", "phone", "it", "we", "this", "and")
    for word in ("good", "bad", "warm", "cold")
]
PREFERRED = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "it is"} for row in REPLIES]

# task -> its rows, in a folder of their own
ROWS: Mapping[str, Callable[[Path], Path]] = {
    "text-classification": lambda folder: write_csv(folder / "rows.csv", sentences(240)),
    "multi-label-classification": lambda folder: write_csv(folder / "rows.csv", tagged(240)),
    "regression": lambda folder: write_csv(folder / "rows.csv", rated(240)),
    "token-classification": lambda folder: write_json_lines(folder / "rows.jsonl", entities(240)),
    "question-answering": lambda folder: write_json_lines(folder / "rows.jsonl", questions(240)),
    "text-generation": lambda folder: write_json_lines(folder / "rows.jsonl", REPLIES),
    "preference": lambda folder: write_json_lines(folder / "rows.jsonl", PREFERRED),
    "seq2seq": lambda folder: write_json_lines(folder / "rows.jsonl", reversals(120)),
    "embedding": lambda folder: write_json_lines(folder / "rows.jsonl", REPLIES),
    "sentence-similarity": lambda folder: write_csv(
        folder / "rows.csv", [{**row, "score": str(5 if row.pop("label") == "same" else 1)} for row in pairs(120)]
    ),
    "ranking": lambda folder: write_json_lines(folder / "rows.jsonl", searches(60)),
    "image-classification": lambda folder: stripes(folder / "stripes", 120),
}
_MODELS: Mapping[str, Callable[[Path], Path]] = {
    "text-generation": tiny_chat_model,
    "preference": tiny_chat_model,
    "seq2seq": tiny_encoder_decoder,
    "image-classification": tiny_vision_model,
}


def short_run(task: str, folder: Path, *, rows: Path | None = None, **settings: Any) -> Run:
    """Train a task for a few steps.

    Args:
        folder: for its rows, its model and its run.
        rows: others than the made-up ones.
        settings: of the recipe, with "__" for a dot.
    """
    own = folder / "rows"
    own.mkdir(parents=True)
    model = _MODELS.get(task, tiny_model)(folder / "model")
    known: dict[str, Any] = {"training.steps": 8, "optimizer.learning_rate": 5e-3, "training.threads": 1}
    known |= {"training.precision": "float32", "task": task, "model": str(model)}
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    return chainrule.train(str(rows or ROWS[task](own)), out=folder / "run", settings=known | changes)
