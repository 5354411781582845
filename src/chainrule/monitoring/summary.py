"""What a monitor's file says, as data; and the rows in it that are worth labelling."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Iterator
from typing import Any

import numpy as np

from chainrule.monitoring.accuracy import accuracy_of, estimated
from chainrule.monitoring.monitor import models_of
from chainrule.monitoring.reference import Reference
from chainrule.monitoring.settings import Settings
from chainrule.monitoring.store import Store

MOST_WINDOWS = 336  # that are told
MOST_ALARMS = 200
QUEUES = {"low-confidence": "low", "unusual": "far"}


def summary_of(store: Store) -> dict[str, Any]:
    """Models with their windows, estimates and queues, and the latest alarms."""
    settings = Settings.model_validate_json(store.meta("settings") or "{}")
    return {
        "settings": settings.model_dump() | {"of_rows": settings.span.of_rows},
        "models": {name: _model(store, settings, name, labels) for name, labels in models_of(store).items()},
        "alarms": list(alarms_of(store)),
    }


def alarms_of(store: Store) -> Iterator[dict[str, Any]]:
    """The latest alarms, the newest first."""
    question = "SELECT seq, time, model, kind, name, number, message, told, delivery FROM alarms ORDER BY seq DESC"
    for seq, time, model, kind, name, number, message, told, delivery in store.all(f"{question} LIMIT {MOST_ALARMS}"):
        known = {"id": seq, "time": time, "model": model, "kind": kind, "name": name, "window": number}
        yield known | {"message": message, "delivery": delivery, "told": json.loads(told)}


def _model(store: Store, settings: Settings, name: str, labels: tuple[str, ...]) -> dict[str, Any]:
    reference = reference_of_file(store, name)
    kept, first, last = store.one("SELECT count(*), min(time), max(time) FROM predictions WHERE model = ?", (name,))
    queues = {
        queue: store.one(f"SELECT count(*) FROM predictions WHERE model = ? AND {column} = 1", (name,))[0]
        for queue, column in QUEUES.items()
    }
    texts = store.one("SELECT count(*) FROM predictions WHERE model = ? AND until >= ?", (name, clock.time()))[0]
    return {
        "labels": list(labels),
        "rows": int(store.meta(f"rows/{name}") or 0),
        "kept": kept,
        "since": first,
        "until": last,
        "reference": None if reference is None else {"source": reference.source, "rows": reference.rows},
        "feedback": accuracy_of(store, name),
        "estimate": _estimate(store, name, reference),
        "shadow": {
            said: int(rows)
            for said, rows in store.all(
                "SELECT name, sum(value) FROM counts WHERE model = ? AND kind = 'shadow' GROUP BY name", (name,)
            )
        },
        "queues": queues | {"texts": texts},
        "windows": _windows(store, settings, name),
    }


def reference_of_file(store: Store, model: str) -> Reference | None:
    """The reference that a model is compared with."""
    known = store.meta(f"reference/{model}")
    return None if known is None else Reference.model_validate_json(known)


def _estimate(store: Store, model: str, reference: Reference | None) -> dict[str, Any] | None:
    """The accuracy that the confidences of all kept rows promise."""
    if reference is None or reference.scores is None or reference.correct is None:
        return None
    scores = [
        score for (score,) in store.all("SELECT score FROM predictions WHERE model = ?", (model,)) if score is not None
    ]
    counts = [0.0] * len(reference.scores.counts)
    for place in reference.scores.bins(np.array(scores)).tolist():
        counts[place] += 1
    share = estimated(reference, counts)
    if share is None:
        return None
    above = sum(score >= (reference.threshold or 0.0) for score in scores) / len(scores)
    return share.as_dict() | {"thresholded": above}


def _windows(store: Store, settings: Settings, model: str) -> list[dict[str, Any]]:
    """The latest windows, the oldest first: rows, rows of each label, drift, estimates."""
    numbers = store.all(
        "SELECT number, exposure, closed FROM windows WHERE model = ? ORDER BY number DESC LIMIT ?",
        (model, MOST_WINDOWS),
    )[::-1]
    if not numbers:
        return []
    kinds = ("rows", "label", "drift", "estimate")
    found: dict[int, dict[str, dict[str, float]]] = {}
    for number, kind, name, value in store.all(
        "SELECT number, kind, name, value FROM counts WHERE model = ? AND number >= ?"
        " AND kind IN ('rows', 'label', 'drift', 'estimate')",
        (model, numbers[0][0]),
    ):
        found.setdefault(number, {}).setdefault(kind, {})[name] = value
    size = settings.span.size
    windows = []
    for number, exposure, closed in numbers:
        counts = {kind: found.get(number, {}).get(kind, {}) for kind in kinds}
        start = None if settings.span.of_rows else number * size
        window = {"number": number, "start": start, "exposure": exposure, "closed": bool(closed)}
        labels = {name: int(value) for name, value in sorted(counts["label"].items())}
        rows = int(counts["rows"].get("", 0))
        windows.append(
            window | {"rows": rows, "labels": labels, "drift": counts["drift"], "estimate": counts["estimate"]}
        )
    return windows


def queued(store: Store, queue: str, model: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a queue that have no feedback, the least confident first: id, model, what was said, texts.

    Args:
        queue: "low-confidence" or "unusual".
        model: None for all.
    """
    condition = "" if model is None else " AND model = ?"
    rows = store.all(
        "SELECT id, model, time, labels, score, CASE WHEN until >= ? THEN inputs END FROM predictions"
        f" WHERE {QUEUES[queue]} = 1{condition} AND id NOT IN (SELECT id FROM feedback) ORDER BY score, seq DESC",
        (clock.time(), *(() if model is None else (model,))),
    )
    for name, of, time, labels, score, inputs in rows:
        known = {"id": name, "model": of, "time": time, "labels": json.loads(labels), "score": score}
        yield known | {"inputs": None if inputs is None else json.loads(inputs)}
