"""Checkpoints: whole or not there, and taken up to the bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chainrule.core.task import Predictions
from chainrule.training import checkpoint
from chainrule.training.checkpoint import Best, Keeper, Standing
from chainrule.training.loop import Progress
from chainrule.training.optimizers import Scaled

pytestmark = pytest.mark.unit
NAMES = ("weight", "bias")
RANKS = [(0.5, -1.0), (0.25, -2.0)]


def standing_at(step: int, *, best: int | None = None) -> tuple[nn.Linear, Standing]:
    """A model and its optimizer after some steps, the same every time."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = Scaled(torch.optim.AdamW(model.parameters(), lr=0.1))
    for _ in range(step):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    standing = Standing(Progress(step, optimizer), seconds=1.5 * step)
    if best is not None:
        predictions = Predictions(np.array([1, 0]), np.array([0.5, 0.25]), np.array([0.1, 0.2]))
        weights = {name: torch.full_like(value, best) for name, value in model.state_dict().items()}
        standing.best = Best(best, (0.5, -1.0), {"accuracy": 0.5, "f1": float("nan")}, predictions, weights, RANKS)
    return model, standing


def states(standing: Standing) -> list[dict[str, torch.Tensor]]:
    assert standing.progress.optimizer is not None
    return list(standing.progress.optimizer.state.values())


def keeper(run: Path, keep: int = 2) -> Keeper:
    (run / "events.jsonl").touch()
    return Keeper(run, 5, keep)


def write(run: Path, step: int, *, best: int | None = None, keep: int = 2) -> None:
    model, standing = standing_at(step, best=best)
    keeper(run, keep).write(model, NAMES, standing)


def taken_up(run: Path, told: list[str] | None = None) -> tuple[nn.Linear, Standing] | None:
    found = keeper(run).newest((told if told is not None else []).append)
    if found is None:
        return None
    model = nn.Linear(3, 2)
    standing = Standing(Progress(0, Scaled(torch.optim.AdamW(model.parameters(), lr=0.1))))
    found.put_into(model, standing)
    return model, standing


def test_what_is_taken_up_is_what_was_written(tmp_path: Path) -> None:
    assert taken_up(tmp_path) is None
    write(tmp_path, 3, best=2)
    wanted, before = standing_at(3, best=2)
    found = taken_up(tmp_path)
    assert found is not None
    model, standing = found
    assert all(torch.equal(model.state_dict()[name], value) for name, value in wanted.state_dict().items())
    assert (standing.progress.step, standing.seconds) == (3, 4.5)
    for mine, theirs in zip(states(standing), states(before), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert (standing.best.step, standing.best.rank, standing.best.ranks) == (2, (0.5, -1.0), RANKS)
    assert np.isnan(standing.best.metrics["f1"])
    assert standing.best.predictions is not None
    assert standing.best.predictions.scores.tolist() == [0.5, 0.25]
    assert float(standing.best.weights["bias"][0]) == 2


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
        write(tmp_path, step, best=best)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best-00000003", "step-00000003", "step-00000004"]
    write(tmp_path, 5, best=5)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best-00000003", "best-00000005", "step-00000004", "step-00000005"]  # 4 needs the best of then


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(place: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        where = min(int(place * len(content)), len(content) - 1)
        content[where] ^= 1
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    "harm", [cut, empty, Path.unlink, *(flip(place) for place in (0.0, 0.01, 0.3, 0.6, 0.999, 1.0))]
)
@pytest.mark.parametrize(
    "file",
    ["state.json", "weights.safetensors", "optimizer.safetensors", "best/state.json", "best/predictions.safetensors"],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, file: str, harm: Callable[[Path], None]
) -> None:
    write(tmp_path, 1, best=1)
    write(tmp_path, 2, best=2)
    folder = tmp_path / "checkpoints"
    harm(folder / "best-00000002" / Path(file).name if file.startswith("best/") else folder / "step-00000002" / file)
    told: list[str] = []
    found = taken_up(tmp_path, told)
    assert found is not None
    assert found[1].progress.step == 1
    assert len(told) == 1
    assert told[0].startswith("warning: the checkpoint step-00000002 cannot be used (")
    assert told[0].endswith("; the one before is taken.")


def test_another_format_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    write(tmp_path, 1)
    monkeypatch.undo()
    told: list[str] = []
    assert taken_up(tmp_path, told) is None
    assert "it is of format 99" in told[0]


def test_events_that_are_missing_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n' * 5, encoding="utf-8")
    write(tmp_path, 1)
    cut(tmp_path / "events.jsonl")
    told: list[str] = []
    assert taken_up(tmp_path, told) is None
    assert "events.jsonl is shorter than it was then" in told[0]


def test_every_write_may_fail_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that writes, flushes, renames or removes fails once, in turn: no room on the disk."""
    calls, fail_at = 0, -1

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return call

    for owner, name in (
        (checkpoint, "save_file"),
        (os, "fsync"),
        (Path, "write_text"),
        (Path, "replace"),
        (Path, "chmod"),
        (Path, "mkdir"),
    ):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    model, standing = standing_at(2, best=2)
    plain = tmp_path / "plain"
    plain.mkdir()
    write(plain, 1, best=1)
    calls = 0
    keeper(plain).write(model, NAMES, standing)
    total = calls
    assert total > 15
    for number in range(1, total + 1):
        run = tmp_path / str(number)
        fail_at = -1
        run.mkdir()
        write(run, 1, best=1)
        calls, fail_at = 0, number
        with pytest.raises(Exception, match=r"full or read-only|No space left"):
            keeper(run).write(model, NAMES, standing)
        fail_at = -1
        assert not list((run / "checkpoints").glob(".*"))
        found = taken_up(run)
        assert found is not None
        assert found[1].progress.step in (1, 2)  # 2 where only the removal of older ones failed
        keeper(run).write(model, NAMES, standing)
        again = taken_up(run)
        assert again is not None
        assert again[1].progress.step == 2
        shutil.rmtree(run)


def test_state_is_json_that_people_can_read(tmp_path: Path) -> None:
    write(tmp_path, 3, best=2)
    state = json.loads((tmp_path / "checkpoints" / "step-00000003" / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 3
    assert state["best"]["step"] == 2
    assert set(state["files"]) == {"weights.safetensors", "optimizer.safetensors"}
