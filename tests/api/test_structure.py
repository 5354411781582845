"""Runs of models with another structure: trained, saved, judged, used, and refused in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModel

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import RecipeError
from chainrule.system.progress import Quiet
from chainrule.testing.data import rated, sentences, write_csv
from chainrule.testing.models import tiny_chat_model

pytestmark = pytest.mark.unit


class Told(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("labelled") / "data.csv", sentences(200))


def train(model: Path, data: Path, out: Path, display: Quiet | None = None, /, **more: Any) -> Run:
    settings = {"model": str(model), "training.steps": 12, "optimizer.learning_rate": 1e-2, "training.threads": 1}
    settings |= {"training.precision": "float32", **more}
    return chainrule.train(str(data), out=out, settings=settings, display=display)


def structure(**changes: Any) -> dict[str, Any]:
    return {f"structure.{key}": value for key, value in changes.items()}


def judged_again(run: Run) -> None:
    """What the saved model scores on validation is what the trained one scored."""
    report = chainrule.evaluate(run, split="validation")
    for name in ("accuracy", "loss"):
        assert report.metrics[name].value == pytest.approx(run.summary["metrics"][name], abs=1e-5)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("full", {"pooling": "attention", "head": "cnn", "insert_blocks": [1], "reinitialise_top": 1}),
        ("lora", {"pooling": "max", "head": "mlp", "insert_blocks": [1]}),
        ("partial", {"pooling": "mean", "head": "cnn", "activation": "silu"}),
        ("head", {"pooling": "mean", "head": "linear"}),
    ],
)
def test_every_strategy_trains_the_head_and_the_artifact_is_the_model(
    strategy: str, changes: dict[str, Any], tiny_bert: Path, labelled: Path, tmp_path: Path
) -> None:
    told = Told()
    run = train(tiny_bert, labelled, tmp_path / "run", told, strategy=strategy, **structure(**changes))
    judged_again(run)
    said = [line for line in told.lines if line.startswith(("Structure", "The artifact"))]
    assert said[0].startswith("Structure: 3 layers, " if "insert_blocks" in changes else "Structure: 2 layers, ")
    assert said[1] == (
        f"The artifact will load in Chainrule alone, because transformers has no {changes['pooling']} pooling under "
        f"the head {changes['head']!r} for bert; what is below the head will load with transformers' AutoModel."
    )
    artifact = run.artifact
    assert artifact.manifest.loads_in == ("chainrule",)
    weights = load_file(artifact.path / "model.safetensors")
    head = {name: value for name, value in weights.items() if name.startswith("classifier.")}
    sizes = sum(value.numel() for value in head.values())
    if strategy == "head":
        assert run.summary["trained_parameters"] == sizes
    else:
        assert run.summary["trained_parameters"] > sizes
    card = (artifact.path / "README.md").read_text(encoding="utf-8")
    assert f"pooling {changes['pooling']}; head {changes['head']}" in card
    assert "library_name: chainrule" in card
    assert AutoModel.from_pretrained(artifact.path).config.num_hidden_layers == len(
        {name.split(".")[3] for name in weights if ".layer." in name}
    )


def test_a_model_with_new_tokens_labels_alike_after_loading(tiny_bert: Path, labelled: Path, tmp_path: Path) -> None:
    changes = structure(add_tokens=["filmgood", "电影院"], drop_layers=[0], pooling="mean")
    run = train(tiny_bert, labelled, tmp_path / "run", **changes)
    judged_again(run)
    before = chainrule.predict(run, text=["a filmgood", "电影院 good"])
    moved = run.artifact.path.rename(tmp_path / "elsewhere")
    assert chainrule.predict(moved, text=["a filmgood", "电影院 good"]) == before
    assert len(json.loads((moved / "tokenizer.json").read_text())["added_tokens"]) == 7


def test_a_number_can_be_read_with_any_head(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rated.csv", rated(200, mean=500.0, scale=100.0))
    changes = structure(pooling="max", head="mlp")
    run = train(tiny_bert, data, tmp_path / "run", task="regression", **changes)
    report = chainrule.evaluate(run, split="validation")
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], rel=1e-3)
    assert abs(chainrule.predict(run, text="good film")[0]["predicted_score"] - 500) < 400  # type: ignore[index]


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("head", {"pooling": "mean", "head": "linear"}),
        ("partial", {"pooling": "max", "insert_blocks": [0]}),
    ],
)
def test_frozen_layers_computed_once_change_nothing(
    strategy: str, changes: dict[str, Any], tiny_bert: Path, labelled: Path, tmp_path: Path
) -> None:
    settings = structure(**changes, dropout=0.0, attention_dropout=0.0) | {"training.epochs": 3, "training.steps": None}
    settings |= {"strategy": {"name": strategy, "options": {"top": 1} if strategy == "partial" else {}}}
    runs = [
        train(tiny_bert, labelled, tmp_path / f"{cache}", **settings, **{"training.trunk_cache": cache})
        for cache in (True, False)
    ]
    losses = [[event["loss"] for event in run.events() if event["event"] == "step"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_adapters_on_a_changed_model_are_merged_or_refused(tiny_bert: Path, labelled: Path, tmp_path: Path) -> None:
    told, settings = Told(), structure(keep_layers=[1]) | {"strategy": "lora"}
    run = train(tiny_bert, labelled, tmp_path / "run", told, **settings)
    assert "The adapters will be merged into the changed model." in told.lines
    assert run.artifact.manifest.loads_in == ("transformers",)
    judged_again(run)
    for alone in ({"strategy.options.merge": False}, {"strategy": "prompt"}):
        with pytest.raises(RecipeError) as caught:
            train(tiny_bert, labelled, tmp_path / "alone", **(settings | alone))
        assert str(caught.value) == (
            "Adapters alone could not be loaded again.\n  - field 'structure': expected the pretrained model as it is, "
            "since adapters that are saved alone need one with a name, got changes that make another model of it. "
            "Leave structure out, or merge: strategy lora with strategy.options.merge=true."
        )


def test_what_the_model_does_not_have_is_refused_before_there_is_a_run(
    tiny_bert: Path, labelled: Path, tmp_path: Path
) -> None:
    for changes in ({"keep_layers": "0-5"}, {"pooling": "cls", "head": "cnn"}, {"add_tokens": ["good"]}):
        with pytest.raises(RecipeError):
            train(tiny_bert, labelled, tmp_path / "run", **structure(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_language_model_with_fewer_layers_is_compared_with_itself_before_step_one(tmp_path: Path) -> None:
    folder, told = tiny_chat_model(tmp_path / "llama"), Told()
    rows = [
        {"prompt": f"{place} {word}", "response": f"very {word}"} for place in "abcdefgh" for word in ("good", "bad")
    ]
    data = tmp_path / "talks.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    changes = structure(keep_layers=[1], add_tokens=["verygood"], insert_blocks=[1])
    run = train(folder, data, tmp_path / "run", told, task="text-generation", **changes)
    assert "The verdict will compare with this changed model as it is before step one." in told.lines
    report = chainrule.evaluate(run, split="validation")
    start = next(event for event in run.events() if event["event"] == "evaluation")
    assert report.baselines["untuned"]["loss"].value == pytest.approx(start["metrics"]["loss"], rel=1e-4)
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], rel=1e-4)
