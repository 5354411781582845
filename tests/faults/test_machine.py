"""What the machine may do to a training: too little memory, a disk that fills up, a clock that goes back."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule import Run
from chainrule.errors import OutputError, ShortageError
from chainrule.system import memory as system_memory
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training import trainer
from chainrule.training.reproduction import comparable_events

pytestmark = pytest.mark.unit
linux = pytest.mark.skipif(sys.platform != "linux", reason="address space can be limited on Linux only")
SETTINGS: dict[str, Any] = {
    "training.precision": "float32",
    "training.threads": 1,
    "training.steps": 6,
    "training.batch_size": 128,
    "training.checkpoint_minutes": 1e-9,
}

# A training whose address space is cut to what it has and a little more, once the modules are there.
CHILD = """
import resource, sys, psutil
import chainrule.training.run, chainrule.cli.main
from chainrule.training import resolve, trainer

def limit(megabytes):
    space = psutil.Process().memory_info().vms + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))

when, megabytes = sys.argv[1], int(sys.argv[2])
if when == "at the start":
    limit(megabytes)
else:  # after the plan was made
    real = trainer._go_on

    def go_on(*arguments):
        limit(megabytes)
        return real(*arguments)

    trainer._go_on = go_on
chainrule.cli.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Rows of some 400 tokens, and a model."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [row | {"text": " ".join([row["text"]] * 40)} for row in sentences(160)]
    return str(write_csv(folder / "long.csv", rows)), str(tiny_model(folder / "bert", positions=512))


def in_a_child(when: str, megabytes: int, inputs: tuple[str, str], out: Path) -> subprocess.CompletedProcess[str]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    words = ["train", inputs[0], "--model", inputs[1], "--out", str(out), *settings, "--json"]
    return subprocess.run(
        [sys.executable, "-c", CHILD, when, str(megabytes), *words], capture_output=True, text=True, check=False
    )


@linux
def test_too_little_address_space_is_said_before_anything_is_read(inputs: tuple[str, str], tmp_path: Path) -> None:
    done = in_a_child("at the start", 300, inputs, tmp_path / "run")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["message"] == "The limit on address space is too low."
    assert error["problems"][0]["todo"] == "Raise the limit: ulimit -v unlimited."
    assert not (tmp_path / "run").exists()


@linux
def test_memory_that_is_gone_after_the_plan_halves_the_pieces(inputs: tuple[str, str], tmp_path: Path) -> None:
    done = in_a_child("after the plan", 200, inputs, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    events = list(Run(tmp_path / "run").events())
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    pieces = [event["micro_batch_tokens"] for event in events if event["event"] == "memory"]
    assert pieces
    assert all(later == earlier // 2 for earlier, later in itertools.pairwise(pieces))
    assert "memory ran short" in done.stderr


def test_no_room_for_one_row_is_said_before_step_one(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chainrule.training.memory.free_memory", lambda: 1 << 17)
    with pytest.raises(ShortageError, match="not enough memory for this training") as caught:
        chainrule.train(inputs[0], model=inputs[1], out=tmp_path / "run", settings=SETTINGS)
    (problem,) = caught.value.problems
    assert re.fullmatch(
        r"\d+ MB for one row of \d+ tokens, [\d,]+ trained parameters and the optimizer's state", problem.expected
    )
    assert problem.got == "0 MB free"
    assert not (tmp_path / "run").exists()


def test_what_onednn_says_is_a_shortage_where_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("could not create a primitive")
    monkeypatch.setattr(system_memory, "free_memory", lambda: 1 << 34)
    assert not system_memory.is_shortage(error)
    monkeypatch.setattr(system_memory, "free_memory", lambda: 1 << 26)
    assert system_memory.is_shortage(error)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("this machine does not let the test mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    disk: Path, inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = chainrule.train(inputs[0], model=inputs[1], out=tmp_path / "alone", settings=SETTINGS)
    real = trainer._record_step

    def record(made: Any, *rest: Any) -> None:
        real(made, *rest)
        if made.step == 4:
            fill(disk / "other")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_record_step", record)
        with pytest.raises(OutputError, match="full or read-only"):
            chainrule.train(inputs[0], model=inputs[1], out=disk / "run", settings=SETTINGS)
    steps = sorted(path.name for path in (disk / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000002", "step-00000003"]
    (disk / "other").unlink()
    chainrule.resume(disk / "run")
    assert comparable_events(disk / "run") == comparable_events(alone.path)
    weights = [(run / "artifact" / "model.safetensors").read_bytes() for run in (alone.path, disk / "run")]
    assert weights[0] == weights[1]


def fill(file: Path) -> None:
    """Take what room there is."""
    with file.open("wb", buffering=0) as out:
        while True:
            try:
                out.write(bytes(1 << 12))
            except OSError:
                return


def test_a_clock_that_goes_back_changes_nothing(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = chainrule.train(inputs[0], model=inputs[1], out=tmp_path / "plain", settings=SETTINGS)
    ticks = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600.0 * next(ticks))
    run = chainrule.train(inputs[0], model=inputs[1], out=tmp_path / "run", settings=SETTINGS)
    times = [event["time"] for event in run.events()]
    assert times == sorted(times, reverse=True)
    assert comparable_events(run.path) == comparable_events(plain.path)
    assert run.summary["seconds"] > 0
    assert all(event["seconds"] >= 0 for event in run.events() if "seconds" in event)
    assert chainrule.resume(run).summary == run.summary
