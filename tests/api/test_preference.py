"""Preferences from rows to a model that prefers, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import RecipeError
from chainrule.testing.data import BAD, GOOD, write_json_lines
from chainrule.testing.models import tiny_chat_model

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_model(tmp_path_factory.mktemp("chat") / "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good words are preferred; replies of both kinds are as long."""
    folder = tmp_path_factory.mktemp("preferences")
    made = [
        {"prompt": f"the {thing}", "chosen": f"very {good}", "rejected": f"very {bad}"}
        for thing in ("film", "book", "room", "phone")
        for good in GOOD
        for bad in BAD
    ]
    write_json_lines(folder / "train.jsonl", made[::2])
    write_json_lines(folder / "validation.jsonl", made[1::4])
    return folder


def train(model: Path, data: Path, out: Path, /, **more: Any) -> Run:
    settings = {"model": str(model), "task": "preference", "training.epochs": 4, "training.threads": 1}
    settings |= {"training.batch_size": 8, "optimizer.learning_rate": 1e-2, "training.precision": "float32", **more}
    return chainrule.train(str(data), out=out, settings=settings)


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_learns_to_prefer(strategy: str, chat: Path, rows: Path, tmp_path: Path) -> None:
    run = train(chat, rows, tmp_path / "run", strategy=strategy)
    metrics = run.summary["metrics"]
    assert set(metrics) == {"reward_accuracy", "margin", "loss"}
    assert metrics["reward_accuracy"] > 0.9
    assert metrics["margin"] > 0
    assert metrics["loss"] < 0.6
    assert run.summary["verdict"].startswith("Better than the longer reply by ")
    report = chainrule.evaluate(run, str(rows), split="validation")
    assert report.metrics["reward_accuracy"].value == pytest.approx(metrics["reward_accuracy"])
    assert report.metrics["loss"].value == pytest.approx(metrics["loss"], rel=1e-3)
    assert report.baselines["longer"]["reward_accuracy"].value == 0.5
    (row,) = chainrule.predict(run, text="the film", max_new_tokens=4)  # type: ignore[misc]
    assert set(row) == {"predicted_text", "predicted_finished"}


def test_identity_loss_and_time_limits_go_together_with_it(chat: Path, rows: Path, tmp_path: Path) -> None:
    run = train(chat, rows, tmp_path / "run", **{"loss": "ipo", "strategy": "lora", "training.epochs": 2})
    assert run.summary["metrics"]["reward_accuracy"] > 0.6
    again = chainrule.reproduce(run, out=tmp_path / "again")
    assert again.same


def test_check_shows_both_replies(chat: Path, rows: Path) -> None:
    report = chainrule.check(str(rows), task="preference", model=str(chat), shown=1)
    first = json.loads((rows / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = report.examples[0].text
    assert text.count("⟦") == 2
    assert f"⟦{first['chosen']}" in text
    assert f"⟦{first['rejected']}" in text


def test_folds_are_refused(chat: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="The task 'preference' cannot be cross-validated"):
        train(chat, rows, tmp_path / "run", **{"training.folds": 3, "strategy": "lora"})
