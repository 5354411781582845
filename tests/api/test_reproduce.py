"""A finished run made again: the same choices, the same bits; or where it first comes out otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import chainrule
from chainrule import Run
from chainrule.errors import DataError, OutputError
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training import job, loop, shortage, trainer
from chainrule.training.decisions import checkpoint_wanted, read_decisions, take
from chainrule.training.reproduction import comparable_events, first_difference

pytestmark = pytest.mark.unit
SETTINGS = {
    "training.precision": "float32",
    "training.threads": 1,
    "training.steps": 9,
    "training.checkpoint_minutes": 1e-9,
    "training.evaluate_every_steps": 4,
}


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, str]:
    return str(write_csv(tmp_path / "reviews.csv", sentences(120))), str(tiny_model(tmp_path / "model"))


def train(inputs: tuple[str, str], out: Path, **more: Any) -> Run:
    return chainrule.train(inputs[0], model=inputs[1], out=out, settings={**SETTINGS, **more})


def short_of_memory(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one allocation fail in the step after `step`."""
    real, loads = job.batch_loader, 0

    def loader(*arguments: Any) -> Callable[[Any], Any]:
        load = real(*arguments)

        def failing(rows: Any) -> Any:
            nonlocal loads
            loads += 1
            if loads == step + 1:
                raise MemoryError
            return load(rows)

        return failing

    monkeypatch.setattr(shortage, "batch_loader", loader)


def spoil_once(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gradient of the n-th step that is made be no number."""
    real, made = loop.mean_and_clip, 0

    def norm_and_factor(*arguments: Any) -> tuple[float, float]:
        nonlocal made
        made += 1
        norm, factor = real(*arguments)
        return (float("nan") if made == step else norm), factor

    monkeypatch.setattr(loop, "mean_and_clip", norm_and_factor)


def test_the_same_to_the_last_bit(inputs: tuple[str, str], tmp_path: Path) -> None:
    run = train(inputs, tmp_path / "run")
    found = chainrule.reproduce(run)
    assert found.same
    assert found.difference is None
    assert (found.run, found.again) == (str(run.path), str(tmp_path / "run-again"))
    assert found.changed == ()
    assert found.metrics["accuracy"]["first"] == found.metrics["accuracy"]["second"]
    again = tmp_path / "run-again"
    assert json.loads((again / "reproduction.json").read_text(encoding="utf-8")) == found.as_dict()
    assert (again / "artifact" / "model.safetensors").read_bytes() == (
        run.path / "artifact" / "model.safetensors"
    ).read_bytes()
    assert (again / "resolved.yaml").read_bytes() == (run.path / "resolved.yaml").read_bytes()


def test_a_frame_is_given_again(inputs: tuple[str, str], tmp_path: Path) -> None:
    frame = pd.read_csv(inputs[0])
    run = chainrule.train(frame, model=inputs[1], out=tmp_path / "run", settings=SETTINGS)
    assert chainrule.reproduce(run, frame, out=tmp_path / "second").same


def test_what_memory_decided_is_decided_again(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        short_of_memory(3, patch)
        run = train(inputs, tmp_path / "run")
    (decision,) = read_decisions(run.path / "events.jsonl")
    assert (decision["event"], decision["step"]) == ("memory", 3)
    plenty = train(inputs, tmp_path / "plenty")
    assert first_difference(comparable_events(run.path), comparable_events(plenty.path)) is not None
    assert chainrule.reproduce(run).same


def test_what_the_clock_decided_is_decided_again(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A divergence goes back to the newest checkpoint, and the clock says where that is."""
    with monkeypatch.context() as patch:
        spoil_once(6, patch)
        patch.setattr("chainrule.training.checkpoint.checkpoint_wanted", lambda pending, step: step == 2)
        run = train(inputs, tmp_path / "run")
    assert [d["back_to"] for d in read_decisions(run.path / "events.jsonl")] == [2]
    with monkeypatch.context() as patch:
        spoil_once(6, patch)
        assert chainrule.reproduce(run).same


def test_a_resumed_run_decides_again_what_it_had_decided(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs short after the checkpoint that a killed run goes on from."""
    with monkeypatch.context() as patch:
        short_of_memory(5, patch)
        alone = train(inputs, tmp_path / "alone")

    class PowerFailureError(Exception):
        pass

    real = trainer._record_step

    def record(made: Any, *rest: Any) -> None:
        real(made, *rest)
        if made.step == 7:
            raise PowerFailureError

    with monkeypatch.context() as patch:
        short_of_memory(5, patch)
        patch.setattr(trainer, "_record_step", record)
        patch.setattr("chainrule.training.checkpoint.checkpoint_wanted", lambda pending, step: step == 4)
        with pytest.raises(PowerFailureError):
            train(inputs, tmp_path / "run")
    chainrule.resume(tmp_path / "run")  # with all the memory it wants
    assert first_difference(comparable_events(alone.path), comparable_events(tmp_path / "run")) is None
    weights = [(run / "artifact" / "model.safetensors").read_bytes() for run in (alone.path, tmp_path / "run")]
    assert weights[0] == weights[1]


def test_another_result_is_said(inputs: tuple[str, str], tmp_path: Path) -> None:
    run = train(inputs, tmp_path / "run")
    events = run.path / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines()
    third = next(place for place, line in enumerate(lines) if '"step": 3' in line)
    altered = json.loads(lines[third]) | {"loss": 0.5}
    events.write_text("\n".join([*lines[:third], json.dumps(altered), *lines[third + 1 :]]) + "\n", encoding="utf-8")
    environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    (run.path / "environment.json").write_text(json.dumps(environment | {"threads": 2}), encoding="utf-8")
    found = chainrule.reproduce(run)
    assert not found.same
    assert found.same_weights
    assert found.difference is not None
    assert {key: found.difference[key] for key in ("step", "event", "key", "first")} == {
        "step": 3,
        "event": "step",
        "key": "loss",
        "first": 0.5,
    }
    assert found.changed == ("threads",)


def test_the_first_difference() -> None:
    events = [{"event": "step", "step": 1, "loss": 1.0}, {"event": "step", "step": 2, "loss": 0.5}]
    assert first_difference(events, [dict(event) for event in events]) is None
    assert first_difference(events, events[:1]) == {
        "step": 2,
        "event": "step",
        "key": "event",
        "first": "step",
        "second": None,
    }
    assert first_difference(events[:1], events) == {
        "step": 2,
        "event": "step",
        "key": "event",
        "first": None,
        "second": "step",
    }
    other = first_difference(events, [events[0], events[1] | {"rows": 4}])
    assert other == {"step": 2, "event": "step", "key": "rows", "first": None, "second": 4}


def test_decisions_are_taken_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    lines = [
        {"event": "start", "step": 0},
        {"event": "memory", "step": 2, "micro_batch_tokens": 64, "time": 1.5},
        {"event": "diverged", "step": 6, "reason": "…", "back_to": 4, "rate_factor": 0.5},
        {"event": "diverged", "step": 7, "reason": "…", "back_to": 5, "rate_factor": 0.25},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "mem', encoding="utf-8")
    pending = read_decisions(file)
    assert pending == [
        {"event": "memory", "step": 2, "micro_batch_tokens": 64},
        {"event": "diverged", "step": 6, "back_to": 4},
        {"event": "diverged", "step": 7, "back_to": 5},
    ]
    assert read_decisions(tmp_path / "none.jsonl") == []
    assert take(pending, "diverged", 6) is None
    assert take(pending, "memory", 1) is None
    assert take(pending, "memory", 2) == {"event": "memory", "step": 2, "micro_batch_tokens": 64}
    assert [checkpoint_wanted(pending, step) for step in (3, 4, 5)] == [False, True, False]
    assert take(pending, "diverged", 6) is not None
    assert [checkpoint_wanted(pending, step) for step in (4, 5)] == [False, True]
    assert take(pending, "diverged", 7) is not None
    assert checkpoint_wanted(pending, 8) is None


def test_what_cannot_be_made_again(inputs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no run at"):
        chainrule.reproduce(tmp_path / "nowhere")
    run = train(inputs, tmp_path / "run")
    (run.path / "summary.json").rename(tmp_path / "summary.json")
    with pytest.raises(OutputError, match="nothing yet to compare with") as caught:
        chainrule.reproduce(run)
    assert caught.value.problems[0].todo == f"Finish it first: chainrule train --resume {run.path}"
    (tmp_path / "summary.json").rename(run.path / "summary.json")
    rows = Path(inputs[0]).read_text(encoding="utf-8").splitlines()
    switched = [row.replace("positive", "negative") for row in rows[50:]]  # the texts stay
    Path(inputs[0]).write_text("\n".join([*rows[:50], *switched]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="has changed since it began"):
        chainrule.reproduce(run)
