"""A run that is killed at any moment and taken up again ends with the same bits and the same events."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chainrule.testing import kills
from chainrule.training.reproduction import comparable_events

KILLS = int(os.environ.get("CHAINRULE_KILLS", "1"))  # of each case; `make faults` asks for many more


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return kills.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for path in tmp_path.iterdir():
        kills.remove(path)


@pytest.mark.unit
@pytest.mark.parametrize("name", kills.CASES)
def test_killed_runs_end_as_if_nothing_had_happened(name: str, inputs: Any, folder: Path) -> None:
    case, alone, out = kills.CASES[name], folder / "alone", folder / "killed"
    began = time.monotonic()
    kills.finish(case, inputs, alone)
    whole = time.monotonic() - began
    wanted, happened = kills.weights(alone), comparable_events(alone)
    draw, killed = random.Random(name), 0
    while killed < KILLS:
        kills.remove(out)
        for _ in range(min(3, KILLS - killed)):  # a run may be killed more than once
            alive = kills.kill_after(case, inputs, out, draw.uniform(0.1, 1.0) * whole)
            killed, whole = killed + alive, whole if alive else 0.7 * whole  # it was faster than it had been alone
        kills.finish(case, inputs, out)
        assert kills.weights(out) == wanted, f"other weights after {killed} kills"
        assert comparable_events(out) == happened, f"other events after {killed} kills"


@pytest.mark.unit
def test_a_pause_changes_nothing(inputs: Any, folder: Path) -> None:
    case = kills.CASES["full"]
    kills.finish(case, inputs, folder / "alone")
    kills.pause(case, inputs, folder / "paused", 0.5)
    assert kills.weights(folder / "paused") == kills.weights(folder / "alone")
    assert comparable_events(folder / "paused") == comparable_events(folder / "alone")
