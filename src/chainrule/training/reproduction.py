"""A run beside the same run made again: whether weights and events are the same, and where they first differ."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from chainrule.core.artifact import Artifact, Run
from chainrule.core.report import Reproduction
from chainrule.system.files import write_json

CLOCKS = ("time", "seconds")  # keys of an event that no second run can repeat
UNREPEATED = ("resumed", "profile")  # events that tell of one process alone


def keep_comparison(run: Path, again: Path, changed: list[str]) -> Reproduction:
    """Compare two finished runs, and keep what is found in the second's reproduction.json."""
    first, second = comparable_events(run), comparable_events(again)
    difference = first_difference(first, second)
    manifests = [Artifact.read(folder).manifest for folder in (run, again)]
    same_weights = manifests[0].weights_sha256 == manifests[1].weights_sha256
    metrics = {
        name: {"first": value, "second": manifests[1].metrics[name]} for name, value in manifests[0].metrics.items()
    }
    found = Reproduction(
        run=str(run),
        again=str(again),
        same=same_weights and difference is None,
        same_weights=same_weights,
        events=len(first),
        difference=difference,
        metrics=metrics,
        changed=tuple(changed),
    )
    write_json(again / "reproduction.json", found.as_dict())
    return found


def comparable_events(run: Path) -> list[dict[str, Any]]:
    """What happened in a run, without clocks and without who went on when."""
    return [
        {key: value for key, value in event.items() if key not in CLOCKS}
        for event in Run(run).events()
        if event["event"] not in UNREPEATED
    ]


def first_difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first event in which two records differ, and in what; an event that only one has differs in "event"."""
    one: dict[str, Any]
    other: dict[str, Any]
    for one, other in zip_longest(first, second, fillvalue={}):
        for key in [*one, *(key for key in other if key not in one)]:
            if one.get(key) != other.get(key):
                there = one or other
                found = {"key": key, "first": one.get(key), "second": other.get(key)}
                return {"step": there["step"], "event": there["event"], **found}
    return None
