"""Queues of rows that are worth labelling, as files that `check` and `train` read once the labels are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chainrule.errors import Problem, RecipeError, Where
from chainrule.monitoring.monitor import models_of
from chainrule.monitoring.store import Store
from chainrule.monitoring.summary import QUEUES, queued
from chainrule.system.files import atomic_path, refuse_existing

SAID = "model_label"  # what the model says of a row, which is not its label


def export_queue(store: Store, out: Path, queue: str, model: str | None) -> dict[str, Any]:
    """Write a queue as JSONL that only its owner may read; returns {"rows", "with_text", "out"}.

    Each line has the columns of the row, where its text is kept, and beside them `id`, `model_label`, `model_score`.

    Raises:
        RecipeError: there is no such queue, or the model must be named.
        OutputError: `out` exists or cannot be written.
    """
    refuse_existing(out)
    if queue not in QUEUES:
        problem = Problem(" or ".join(QUEUES), repr(queue), "Choose one.", Where(field="queue"))
        raise RecipeError(f"There is no queue {queue!r}.", [problem])
    known = list(models_of(store))
    if model is None and len(known) == 1:
        model = known[0]
    if model not in known:
        got = "none" if model is None else repr(model)
        problem = Problem(f"one of {', '.join(known)}", got, "Name it: --model NAME.", Where(field="model"))
        raise RecipeError("Rows are exported of one model at a time.", [problem])
    rows = with_text = 0
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in queued(store, queue, model):
            inputs = row["inputs"] or {}
            said = {"id": row["id"], SAID: "|".join(row["labels"]), "model_score": row["score"]}
            file.write(json.dumps({**inputs, **said}, ensure_ascii=False) + "\n")
            rows, with_text = rows + 1, with_text + bool(inputs)
    out.chmod(0o600)
    return {"rows": rows, "with_text": with_text, "out": str(out)}
