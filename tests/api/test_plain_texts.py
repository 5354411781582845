"""Texts that are no conversations, from rows to verdict; and replies that are written when a chat model is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.testing.data import write_json_lines
from chainrule.testing.models import tiny_chat_model

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {
    "training.epochs": 6,
    "training.precision": "float32",
    "optimizer.learning_rate": 1e-2,
    "task.options.max_new_tokens": 6,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = ("film", "book", "room", "phone")
    rows = [
        {"text": " ".join([f"the {place} was {word} and very cold"] * count)}
        for place in places
        for word in ("good", "bad", "warm", "dull")
        for count in range(1, 6)
    ]
    return write_json_lines(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def run(texts: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "plain"
    return chainrule.train(texts, out=out, task="text-generation", model=str(model), max_length=12, settings=SETTINGS)


def test_plain_texts_are_learned_in_blocks(run: Run, texts: Path, model: Path) -> None:
    report = chainrule.check(texts, task="text-generation", model=str(model), max_length=12)
    told = {found.split: found.message for found in report.findings if found.kind == "windowed"}
    assert told["train"].endswith("longer than 12 tokens: nothing is cut off, as such rows are read in blocks.")
    assert not [found for found in report.findings if found.kind == "too-long"]
    assert run.summary["verdict"].startswith(("Better than the untuned model", "No verdict"))
    assert run.summary["metrics"]["loss"] < 2.0, "the untuned model's is above 5"


def test_blocks_packed_or_padded_have_the_same_loss(texts: Path, model: Path, tmp_path: Path) -> None:
    losses = []
    for packing in (False, True):
        settings = {**SETTINGS, "training.steps": 4, "training.packing": packing, "training.accelerate": False}
        settings["training.group_by_length"] = False
        out = tmp_path / str(packing)
        run = chainrule.train(
            texts, out=out, task="text-generation", model=str(model), max_length=12, settings=settings
        )
        losses.append([event["loss"] for event in run.events() if event["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_is_judged_by_loss_alone_and_goes_on_writing(run: Run) -> None:
    report = chainrule.evaluate(run)
    assert set(report.metrics) == {"token_accuracy", "loss", "perplexity"}
    [row] = chainrule.predict(run, text="the film was good and", max_new_tokens=2)  # type: ignore[misc]
    assert row["predicted_text"] == "very cold"
    card = (run.artifact.path / "README.md").read_text(encoding="utf-8")
    assert "Trained on plain texts, every token of them, in blocks of 12." in card
    assert "apply_chat_template" not in card


def test_a_chat_model_writes_when_it_is_judged(model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{place} {word}", "response": f"very {word}"}
        for place in ("film", "book", "room", "phone", "it", "we", "this", "and")
        for word in ("good", "bad", "warm", "cold", "dull", "silly")
    ]
    source = write_json_lines(tmp_path / "talks.jsonl", rows)
    settings = {**SETTINGS, "task.options.generated": 4, "data.test_fraction": 0.2}
    run = chainrule.train(source, out=tmp_path / "run", task="text-generation", model=str(model), settings=settings)
    report = chainrule.evaluate(run)
    told = report.detail["written"]
    assert (told["rows"], told["of"]) == (4, report.rows)
    assert report.primary_metric == "loss"
    assert report.verdict.baseline == "untuned"
    assert set(report.baselines) == {"untuned"}
    assert report.metrics["rouge1"].value > report.baselines["untuned"]["rouge1"].value
    assert report.metrics["stop_rate"].value > report.baselines["untuned"]["stop_rate"].value
    first = told["examples"][0]
    assert first["references"] == [f"very {first['source'].split()[1]}"]
    assert set(first["others"]) == {"untuned"}
    assert "What it writes" in (run.path / "report.html").read_text()
