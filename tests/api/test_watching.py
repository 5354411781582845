"""Trainings that are watched, and what `show gradients` says of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DivergedError, ModelError, RecipeError
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit
SETTINGS = {"training.threads": 1, "training.precision": "bfloat16", "training.watch_gradients": True}


def kinds(run: Run | Path) -> list[str]:
    return [finding["kind"] for finding in chainrule.show("gradients", run)["findings"]]


def test_a_sound_training_has_no_findings(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    run = chainrule.train(
        str(reviews),
        model=str(tiny_bert),
        out=tmp_path / "run",
        watch_gradients=True,
        settings={"optimizer.learning_rate": 1e-3, "training.threads": 1, "training.precision": "float32"},
    )
    shown = chainrule.show("gradients", run)
    assert shown["findings"] == []
    assert shown["steps"] == [1, 10, 20, 30]
    assert list(shown["middle"]) == ["all", "head", "layer 1", "layer 0", "embeddings", "group 1", "group 2"]
    assert all(len(series) == 4 for table in shown["layers"].values() for series in table.values())
    assert "noise_scale" in shown["middle"]["layer 0"]
    assert shown["middle"]["layer 0"]["moved"] == shown["layers"]["layer 0"]["moved"][-1] > 0
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Layer by layer" in page
    assert "Nothing is wrong with the gradients as far as was looked at." in page


@pytest.mark.parametrize("strategy", ["full", "partial", "lora"])
def test_a_learning_rate_of_a_thousand_is_named(strategy: str, tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    options = {"strategy.options.top": 1} if strategy == "partial" else {}
    settings = {**SETTINGS, **options, "strategy": strategy, "optimizer.learning_rate": 1000.0, "training.steps": 20}
    with contextlib.suppress(DivergedError):
        chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    assert "learning-rate-too-high" in kinds(tmp_path / "run")


def test_a_weight_of_the_base_model_that_is_no_number_is_named(reviews: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["encoder.layer.1.intermediate.dense.weight"][3, 5] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DivergedError, match=r"first in the parameter bert.encoder.layer.1.intermediate.dense.weight"):
        chainrule.train(str(reviews), model=str(model), out=tmp_path / "run", settings=SETTINGS)
    (finding,) = chainrule.show("gradients", tmp_path / "run")["findings"]
    part = "the parameter bert.encoder.layer.1.intermediate.dense.weight (layer 1)"
    assert (finding["kind"], finding["severity"]) == ("non-finite", "error")
    assert finding["message"].startswith("Step 1 had no finite loss or gradient.")
    assert finding["message"].endswith(f"is in {part}.")


def test_a_run_that_was_not_watched_says_how(trained: Run) -> None:
    with pytest.raises(ModelError, match="were not looked at") as caught:
        chainrule.show("gradients", trained)
    assert caught.value.problems[0].todo == "Train with --watch-gradients."
    assert "Layer by layer" not in (trained.path / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_shown(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as wrong:
        chainrule.show("gradients")
    assert (wrong.value.problems[0].got, wrong.value.problems[0].todo) == (
        "no run", "Say: chainrule show gradients RUN",
    )  # fmt: skip
    with pytest.raises(RecipeError) as wrong:
        chainrule.show("catalog", trained)
    assert wrong.value.problems[0].got == "'catalog' and a run"
    with pytest.raises(ModelError, match="There is no run at") as missing:
        chainrule.show("gradients", tmp_path / "nowhere")
    assert missing.value.problems[0].got == "no such folder"
    with pytest.raises(ModelError) as missing:
        chainrule.show("gradients", tmp_path)
    assert missing.value.problems[0].got == "another folder"
