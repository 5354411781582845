"""What memory and the clock have decided in a run, so that whoever makes its steps again decides the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chainrule.errors import ModelError, Problem, Where

Decision = dict[str, Any]
_KEYS = {"memory": ("step", "micro_batch_tokens"), "diverged": ("step", "back_to")}


def read_decisions(events: Path, start: int = 0) -> list[Decision]:
    """The decisions in events.jsonl from byte `start` on, in the order in which they were made.

    "memory": after `step` at most `micro_batch_tokens` are worked through at once. "diverged": training diverged in
    `step` and went back to `back_to`, which is where the clock had written a checkpoint.

    Raises:
        ModelError: a line is no event as they are written.
    """
    if not events.is_file():
        return []
    with events.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]  # the last may be torn
    try:
        found = [json.loads(line) for line in lines]
        return [
            {"event": event["event"], **{key: int(event[key]) for key in _KEYS[event["event"]]}}
            for event in found
            if event["event"] in _KEYS
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = Problem("events as they are written", str(error)[:200], "Train anew.", Where(file=str(events)))
        raise ModelError(f"The events of {events.parent} cannot be read.", [problem]) from error


def take(pending: list[Decision], event: str, step: int) -> Decision | None:
    """The next decision, if it is of this kind and of this step; it is pending no more."""
    if pending and pending[0]["event"] == event and pending[0]["step"] == step:
        return pending.pop(0)
    return None


def checkpoint_wanted(pending: list[Decision], step: int) -> bool | None:
    """Whether there was a checkpoint of this step before a divergence still to come; None where the clock is free."""
    returns = [decision["back_to"] for decision in pending if decision["event"] == "diverged"]
    return step == returns[0] if returns else None
