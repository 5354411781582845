"""A training by workers of Ray: the losses of one process, and its end when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = [pytest.mark.unit, pytest.mark.slow]
SETTINGS = {
    "structure.dropout": 0,
    "structure.attention_dropout": 0,
    "training.precision": "float32",
    "training.threads": 1,
    "training.batch_size": 17,
    "training.micro_batch_tokens": 64,
    "training.checkpoint_minutes": 1e-9,
    "seed": 3,
}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What is trained, in relative paths."""
    write_csv(tmp_path / "reviews.csv", sentences(150))
    tiny_model(tmp_path / "bert")
    assigned = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["train", "reviews.csv", "--model", "bert", *assigned]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    with (folder / "log").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "chainrule", *words]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True, env=environment)


def end(process: subprocess.Popen[str], folder: Path) -> str:
    code = process.wait(600)
    log = (folder / "log").read_text(encoding="utf-8")
    assert code == 0, log
    return log


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [event for event in Run(run).events() if event["event"] == "step"]


def test_two_workers_make_the_steps_of_one_process(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start([*words, "--out", "two", "--epochs", "2", "--engine", "ray", "--workers", "2", "--json"], tmp_path)
    log = end(process, tmp_path)
    assert '"run": "two"' in log
    assert "Strategy full: trains" in log
    assert not list(tmp_path.glob(".two*"))
    monkeypatch.chdir(tmp_path)
    settings = {**SETTINGS, "training.epochs": 2}
    one = chainrule.train("reviews.csv", model="bert", out="one", settings=settings)
    ours, theirs = steps_of(one.path), steps_of(Path("two"))
    assert len(theirs) == len(ours) == 16
    assert [step["loss"] for step in theirs] == pytest.approx([step["loss"] for step in ours], rel=1e-5)
    norms = [step["gradient_norm"] for step in ours]
    assert [step["gradient_norm"] for step in theirs] == pytest.approx(norms, rel=1e-5)
    assert Run(Path("two")).summary["metrics"] == pytest.approx(one.summary["metrics"], rel=1e-5)


def test_a_killed_worker_begins_again_from_the_newest_checkpoint(words: list[str], tmp_path: Path) -> None:
    run, steps = tmp_path / "run", 300
    asked = ["--out", "run", "--set", f"training.steps={steps}", "--engine", "ray", "--workers", "2"]
    process = start([*words, *asked], tmp_path)
    wait_for_steps(run, 10, process)
    one_worker(process.pid).send_signal(signal.SIGKILL)
    log = end(process, tmp_path)
    assert "warning: a worker is lost" in log
    events = Run(run).events()
    (went_on,) = [event["step"] for event in events if event["event"] == "resumed"]
    assert 9 <= went_on < steps
    assert [step["step"] for step in steps_of(run)] == list(range(1, steps + 1))
    assert Run(run).summary["steps"] == steps


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not (run / "events.jsonl").is_file() or len(steps_of(run)) < steps:
        assert process.poll() is None, (run.parent / "log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopped_training_keeps_its_last_step(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command alone hears the signal; its workers are told."""
    run, steps = tmp_path / "run", 300
    asked = ["--out", "run", "--set", f"training.steps={steps}", "--set", "training.checkpoint_minutes=60"]
    process = start([*words, *asked, "--engine", "ray", "--workers", "2"], tmp_path)
    wait_for_steps(run, 10, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143, (tmp_path / "log").read_text(encoding="utf-8")
    log = (tmp_path / "log").read_text(encoding="utf-8")
    last = len(steps_of(run))
    assert 10 <= last < steps
    assert log.count(f"Error: Stopped by SIGTERM after step {last}.") == 1, log
    assert "a worker is lost" not in log
    assert not list(tmp_path.glob(".run*"))
    monkeypatch.chdir(tmp_path)
    resumed = chainrule.resume(run)
    assert [event["step"] for event in resumed.events() if event["event"] == "resumed"] == [last]
    assert [step["step"] for step in steps_of(run)] == list(range(1, steps + 1))


def one_worker(driver: int) -> psutil.Process:
    """A worker of the training that a process has started Ray for."""
    for process in psutil.Process(driver).children(recursive=True):
        if any("RayTrainWorker" in word for word in process.cmdline()):
            return process
    raise AssertionError("there is no worker")


def test_what_a_worker_finds_wrong_is_told_once(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\n", encoding="utf-8")
    process = start([*words, "--out", "run", "--engine", "ray", "--workers", "2"], tmp_path)
    assert process.wait(300) == 2, (tmp_path / "log").read_text(encoding="utf-8")
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert log.count("Error: ") == 1, log
    assert "a worker is lost" not in log
    assert not (tmp_path / "run").exists()
