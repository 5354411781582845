"""A training that was stopped, killed or short of memory, and how it goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.errors import DataError, OutputError, ShortageError
from chainrule.system import memory
from chainrule.system.lock import only_one
from chainrule.system.progress import Quiet
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training import job, shortage, trainer
from chainrule.training import run as run_module

pytestmark = pytest.mark.unit
SETTINGS = {"training.precision": "float32", "training.threads": 1, "training.checkpoint_minutes": 1e-9}


class Told(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


class PowerFailureError(Exception):
    pass


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next training end without a word after so many steps."""
    real = trainer._record_step

    def record(made: Any, *rest: Any) -> None:
        real(made, *rest)
        if made.step == step:
            raise PowerFailureError

    monkeypatch.setattr(trainer, "_record_step", record)


@pytest.fixture
def stopped(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 6 steps that has ended in the fourth, and its data beside it."""
    data = write_csv(tmp_path / "reviews.csv", sentences(120))
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(PowerFailureError):
            chainrule.train(
                str(data), model=str(tiny_bert), out=tmp_path / "run", settings={**SETTINGS, "training.steps": 6}
            )
    return tmp_path / "run"


def losses(run: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in Run(run).events() if event["event"] == "step"]


def test_goes_on_to_the_end(stopped: Path, tiny_bert: Path, tmp_path: Path) -> None:
    told = Told()
    run = chainrule.resume(stopped, display=told)
    assert "Going on after step 3." in told.lines
    assert [step for step, _ in losses(stopped)] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in run.events() if event["event"] == "resumed"] == [3]
    assert run.summary["steps"] == 6
    assert (stopped / "report.html").is_file()
    alone = chainrule.train(
        str(tmp_path / "reviews.csv"),
        model=str(tiny_bert),
        out=tmp_path / "alone",
        settings={**SETTINGS, "training.steps": 6},
    )
    assert losses(alone.path) == losses(stopped)
    weights = [(path / "artifact" / "model.safetensors").read_bytes() for path in (stopped, alone.path)]
    assert weights[0] == weights[1]


def test_a_finished_run_has_nothing_to_go_on_with(trained: Run) -> None:
    told = Told()
    before = (trained.path / "summary.json").read_bytes()
    assert chainrule.resume(trained, display=told).summary == trained.summary
    assert told.lines == [f"The run {trained.path} is finished; there is nothing to go on with."]
    assert (trained.path / "summary.json").read_bytes() == before


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no run at") as caught:
        chainrule.resume(tmp_path / "nowhere")
    assert caught.value.problems[0].got == "no such folder"
    (tmp_path / "resolved.yaml").touch()  # of a version that wrote less
    with pytest.raises(OutputError) as caught:
        chainrule.resume(tmp_path)
    assert caught.value.problems[0].got == "a folder without resolved.yaml or inputs.json"


def test_data_that_has_changed_is_refused(stopped: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", sentences(120, seed=1))
    with pytest.raises(DataError, match="has changed since it began") as caught:
        chainrule.resume(stopped)
    assert {problem.where.field for problem in caught.value.problems if problem.where} >= {"train", "validation"}
    assert caught.value.problems[0].todo == "Put the data back as it was, or train anew with --out."
    write_csv(tmp_path / "reviews.csv", sentences(120))
    assert chainrule.resume(stopped).summary["steps"] == 6


def test_data_that_is_gone_is_said(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").unlink()
    with pytest.raises(DataError):
        chainrule.resume(stopped)
    write_csv(tmp_path / "reviews.csv", sentences(120))
    assert chainrule.resume(stopped).summary["steps"] == 6


def test_another_base_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = write_csv(tmp_path / "reviews.csv", sentences(120)), tiny_model(tmp_path / "model")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(PowerFailureError):
            chainrule.train(str(data), model=str(model), out=tmp_path / "run", settings=SETTINGS)
    other = tiny_model(tmp_path / "other", seed=9)
    (model / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(DataError) as caught:
        chainrule.resume(tmp_path / "run")
    assert caught.value.problems[0].expected == "the base model that the run began with"


def test_one_process_at_a_time(stopped: Path) -> None:
    """The other one holds the lock in a process of its own, as the lock is the process's."""
    code = (
        "import sys; from pathlib import Path; from chainrule.system.lock import only_one\n"
        f"with only_one(Path({str(stopped)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="Another process works on") as caught:
            chainrule.resume(stopped)
        assert caught.value.problems[0].todo == "Wait until the other process has ended, or stop it."
        other.communicate()
    with only_one(stopped):
        pass


def test_a_shortage_of_memory_halves_the_pieces_and_the_steps_stay(
    tmp_path: Path, tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "training.steps": 5, "structure.dropout": 0.0, "structure.attention_dropout": 0.0}
    plenty = chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "plenty", settings=settings)
    real, sizes = job.batch_loader, []

    def loader(*arguments: Any) -> Any:
        load = real(*arguments)

        def failing(rows: Any) -> Any:
            batch = load(rows)
            sizes.append(batch.padded_tokens)
            if len(sizes) > 2 and batch.padded_tokens > 150:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return batch

        return failing

    monkeypatch.setattr(shortage, "batch_loader", loader)
    told = Told()
    short = chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "short", settings=settings, display=told)
    found = [event for event in short.events() if event["event"] == "memory"]
    assert found
    assert all(event["step"] == 2 for event in found)
    assert found[-1]["micro_batch_tokens"] <= 150
    assert [step for step, _ in losses(short.path)] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in losses(short.path)] == pytest.approx(
        [loss for _, loss in losses(plenty.path)], rel=1e-4
    )
    assert any("memory ran short; from here on at most" in line for line in told.lines)


def test_no_memory_for_a_single_row_is_one_clear_error(
    tmp_path: Path, tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loader(*arguments: Any) -> Any:
        def failing(rows: Any) -> Any:
            raise MemoryError

        return failing

    monkeypatch.setattr(shortage, "batch_loader", loader)
    with pytest.raises(ShortageError, match="not enough memory for this training") as caught:
        chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=SETTINGS)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].got == "none left in step 1"
    assert "--resume" in caught.value.problems[0].todo


def test_another_error_is_not_taken_for_a_shortage() -> None:
    assert memory.is_shortage(MemoryError())
    assert memory.is_shortage(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not memory.is_shortage(RuntimeError("shapes do not match"))
    assert not memory.is_shortage(ValueError("out of memory"))


def test_after_a_kill_for_memory_it_goes_on_with_half(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = memory.kernel_kills() or 0
    monkeypatch.setattr(run_module, "kernel_kills", lambda: kills + 1)
    resolved = chainrule.read_recipe(stopped / "resolved.yaml").training.micro_batch_tokens
    assert resolved is not None
    run = chainrule.resume(stopped)
    found = [event for event in run.events() if event["event"] == "memory"]
    assert [(event["step"], event["micro_batch_tokens"]) for event in found] == [(3, resolved // 2)]
    assert run.summary["steps"] == 6


def command(*words: str) -> list[str]:
    return [str(Path(sys.executable).parent / "chainrule"), *words]


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_ends_the_step_and_says_how_to_go_on(
    number: signal.Signals, code: int, name: str, tmp_path: Path, tiny_bert: Path, reviews: Path
) -> None:
    out = tmp_path / "run"
    words = command("train", str(reviews), "--model", str(tiny_bert), "--out", str(out), "--epochs", "1000")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a background job would ignore it
    try:
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    events = out / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (events.is_file() and events.read_text("utf-8").count('"step"') > 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    step = int(re.search(rf"Stopped by {name} after step ([\d,]+)\.", said)[1].replace(",", ""))  # type: ignore[index]
    assert f"Go on with: chainrule train --resume {out}" in said
    assert losses(out)[-1][0] == step
    assert (out / "checkpoints" / f"step-{step:08d}").is_dir()


def test_resume_takes_no_other_flags(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(stopped), "--epochs", "3", "--json"])
    assert stop.value.code == 2
    assert (
        "it takes no other argument but --engine, --workers and --json"
        in json.loads(capsys.readouterr().out)["error"]["problems"][0]["got"]
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(stopped), "--json"])
    told = capsys.readouterr()
    assert stop.value.code == 0, told.err
    assert json.loads(told.out)["steps"] == 6
