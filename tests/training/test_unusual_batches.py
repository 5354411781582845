"""Batches and machines off the usual path: the kernels give what plain torch gives, from the first step to the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.system import device
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit

BASE: dict[str, Any] = {
    "training.steps": 6,
    "training.evaluate_every_steps": 6,
    "training.threads": 1,
    "training.precision": "float32",
    "structure.dropout": 0.0,
    "structure.attention_dropout": 0.0,
    "optimizer.learning_rate": 1e-3,
}


def losses(run: Run) -> list[float]:
    lines = (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [event["loss"] for event in events if event["event"] == "step"]


def both(data: Path, model: Path, folder: Path, **settings: Any) -> tuple[list[float], list[float]]:
    """Losses of the same training with the kernels and without them."""
    found = []
    for accelerated in (True, False):
        how = BASE | {"model": str(model), "training.accelerate": accelerated} | settings
        found.append(losses(chainrule.train(str(data), out=folder / str(accelerated), settings=how)))
    return found[0], found[1]


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model", request.param, positions=600)


def test_one_row_a_batch(model: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", sentences(60))
    fast, plain = both(data, model, tmp_path, **{"training.batch_size": 1})
    assert len(fast) == 6
    assert fast == pytest.approx(plain, abs=2e-4)


def test_rows_longer_than_all_others_and_than_a_piece(model: Path, tmp_path: Path) -> None:
    """Two rows of hundreds of tokens among short ones, and pieces that hold a part of one of them."""
    rows = sentences(60)
    for row in rows[::7]:
        row["text"] = " ".join([row["text"]] * 80)
    data = write_csv(tmp_path / "rows.csv", rows)
    how = {"training.batch_size": 8, "training.micro_batch_tokens": 64, "model.max_length": 512}
    fast, plain = both(data, model, tmp_path, **how)
    assert fast == pytest.approx(plain, abs=2e-4)
    whole, _ = both(data, model, tmp_path / "whole", **(how | {"training.micro_batch_tokens": 100_000}))
    assert fast == pytest.approx(whole, abs=2e-4)


def test_a_processor_without_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is float32 there, and so is everything that is done."""
    monkeypatch.setattr(device, "cpu_flags", frozenset)
    folder = tiny_model(tmp_path / "model")
    data = write_csv(tmp_path / "rows.csv", sentences(60))
    how = {"training.precision": "auto", "training.batch_size": 8}
    fast, plain = both(data, folder, tmp_path, **how)
    assert fast == pytest.approx(plain, abs=2e-4)
    resolved = (tmp_path / "True" / "resolved.yaml").read_text(encoding="utf-8")
    assert "precision: float32" in resolved
