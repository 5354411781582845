"""Trainings that processes share: the losses, gradients and weights of one process, and how they end."""

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
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import parse_recipe
from chainrule.errors import RecipeError
from chainrule.system.processes import World
from chainrule.system.progress import Quiet
from chainrule.tasks import find_task
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training.data_parallel import refuse_sharing

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {
    "structure.dropout": 0,
    "structure.attention_dropout": 0,
    "training.precision": "float32",
    "training.threads": 1,
    "seed": 3,
}
SHARED = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "chainrule"]
Inputs = tuple[Path, Path]  # data and model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("shared")
    return write_csv(folder / "reviews.csv", sentences(150)), tiny_model(folder / "bert")


def start(words: list[str], out: Path) -> subprocess.Popen[str]:
    """A command in two processes, whose output goes to a file beside the run."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with out.with_suffix(".log").open("w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, *SHARED, *words], stdout=log, stderr=log, text=True, env=environment)


def words_of(inputs: Inputs, out: Path, settings: dict[str, Any]) -> list[str]:
    data, model = inputs
    assigned = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["train", str(data), "--model", str(model), "--out", str(out), *assigned]


def together(inputs: Inputs, out: Path, settings: dict[str, Any]) -> Run:
    process = start(words_of(inputs, out, settings), out)
    assert process.wait(300) == 0, out.with_suffix(".log").read_text(encoding="utf-8")
    return Run(out)


def alone(inputs: Inputs, out: Path, settings: dict[str, Any]) -> Run:
    return chainrule.train(str(inputs[0]), model=str(inputs[1]), out=out, settings=settings)


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [event for event in Run(run).events() if event["event"] == "step"]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run.path / "artifact" / "model.safetensors")
    return found


# 120 rows in batches of 7: the last of an epoch has 3, of 17 it has 1, so that one process has none.
@pytest.mark.parametrize(
    ("batch", "optimizer"), [(17, {"optimizer.name": "sgd", "optimizer.max_gradient_norm": None}), (7, {})]
)
def test_two_processes_make_the_steps_of_one(
    inputs: Inputs, tmp_path: Path, batch: int, optimizer: dict[str, Any]
) -> None:
    """With SGD, weights follow the gradient's scale, which Adam would hide."""
    settings = {**SETTINGS, **optimizer, "training.batch_size": batch, "training.epochs": 1}
    settings |= {"training.micro_batch_tokens": 64, "training.evaluate_every_steps": 4}
    one, two = alone(inputs, tmp_path / "one", settings), together(inputs, tmp_path / "two", settings)
    ours, theirs = steps_of(one.path), steps_of(two.path)
    assert [step["rows"] for step in theirs] == [step["rows"] for step in ours]
    assert 120 % batch in [step["rows"] for step in ours]
    assert [step["tokens"] for step in theirs] == [step["tokens"] for step in ours]
    assert [step["loss"] for step in theirs] == pytest.approx([step["loss"] for step in ours], rel=1e-5)
    norms = [step["gradient_norm"] for step in ours]
    assert [step["gradient_norm"] for step in theirs] == pytest.approx(norms, rel=1e-5)
    assert two.summary["metrics"] == pytest.approx(one.summary["metrics"], rel=1e-5)
    before, after = weights_of(one), weights_of(two)
    for name, values in before.items():
        if not name.endswith("key.bias"):  # its gradient is 0 in theory: softmax ignores what all keys share
            assert torch.allclose(values, after[name], rtol=1e-4, atol=1e-6), name
    assert json.loads((two.path / "environment.json").read_text(encoding="utf-8"))["workers"] == 2


STEPS = 80
LONG = {**SETTINGS, "training.steps": STEPS, "training.batch_size": 16, "training.checkpoint_minutes": 1e-9}


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    log = run.with_suffix(".log")
    while process.poll() is None:
        events = run / "events.jsonl"
        if events.is_file() and events.read_text(encoding="utf-8").count('"event": "step"') >= step:
            return
        time.sleep(0.01)
    raise AssertionError(log.read_text(encoding="utf-8"))


def worker(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"there is no process {rank}")


class Told(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_two_processes_are_killed_and_one_goes_on(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(words_of(inputs, out, LONG), out)
    wait_for_step(out, 20, process)
    worker(process, 1).send_signal(signal.SIGKILL)
    assert process.wait(120) != 0
    assert "Another process of this training is gone." in out.with_suffix(".log").read_text(encoding="utf-8")
    assert not (out / "artifact").exists()
    told = Told()
    run = chainrule.resume(out, display=told)
    (went_on,) = [event["step"] for event in run.events() if event["event"] == "resumed"]
    assert 18 <= went_on < STEPS
    assert [step["step"] for step in steps_of(out)] == list(range(1, STEPS + 1))
    assert run.summary["steps"] == STEPS
    assert any("workers changed since the run began" in line for line in told.lines)
    reference = steps_of(alone(inputs, tmp_path / "alone", LONG).path)
    for ours, theirs in zip(steps_of(out), reference, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]


@pytest.mark.slow
def test_a_stopped_training_of_two_goes_on_with_two(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**LONG, "training.checkpoint_minutes": 60}
    process = start(words_of(inputs, out, settings), out)
    wait_for_step(out, 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) != 0
    log = out.with_suffix(".log").read_text(encoding="utf-8")
    assert "Stopped by SIGTERM after step" in log, log
    process = start(["train", "--resume", str(out), "--json"], out)
    assert process.wait(300) == 0, out.with_suffix(".log").read_text(encoding="utf-8")
    assert "Going on after step" in out.with_suffix(".log").read_text(encoding="utf-8")
    assert [step["step"] for step in steps_of(out)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        (
            {"training.folds": 3},
            "text-classification",
            "field 'training.folds': expected one training, got 3 folds. Leave --folds out, or train in one process.",
        ),
        (
            {"strategy": "auto"},
            "text-classification",
            "field 'strategy.name': expected a strategy, got auto, which tries several. Let one process choose with "
            "--strategy auto, then train its resolved.yaml with several.",
        ),
        (
            {},
            "embedding",
            "field 'task.name': expected a task whose rows can be learned apart, got embedding, where the rows of a "
            "batch are each other's examples. Train it in one process.",
        ),
    ],
    ids=["folds", "auto", "whole batches"],
)
def test_what_cannot_be_shared_is_refused(settings: dict[str, Any], task: str, message: str) -> None:
    recipe = parse_recipe({"data": {"source": "x.csv"}, "task": task, "model": {"name": "minilm"}}).replace(settings)
    refuse_sharing(recipe, find_task(task), World())
    with pytest.raises(RecipeError) as caught:
        refuse_sharing(recipe, find_task(task), World(0, 2))
    assert caught.value.message == "This training cannot be shared out among 2 processes."
    assert [str(problem) for problem in caught.value.problems] == [message]


@pytest.mark.slow
def test_an_error_is_told_once(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    process = start([*words_of(inputs, out, SETTINGS), "--json"], out)
    assert process.wait(120) != 0
    log = out.with_suffix(".log").read_text(encoding="utf-8")
    assert log.count('"error"') == 1
    assert f"Error in process 1: In process 0 of 2: The output path {out} exists already." in log
