"""Images from rows to a model that plain transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import read_recipe
from chainrule.errors import DataError, ModelError, RecipeError
from chainrule.evaluation.pixels import PixelModel
from chainrule.evaluation.plain_use import plain_use
from chainrule.models import convnet
from chainrule.models.convnet import Options, processor_of
from chainrule.tasks.pictures import encode
from chainrule.testing.data import stripes
from chainrule.testing.models import tiny_vision_model

pytestmark = pytest.mark.unit

TASK = "image-classification"
SMALL = {"task": TASK, "model.options.widths": [32, 64], "training.precision": "float32", "training.threads": 1}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("images"), 160)


@pytest.fixture(scope="module")
def made(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "convnet"
    settings = {**SMALL, "model.name": "convnet", "training.epochs": 12}
    return chainrule.train(str(labels), out=out, settings=settings)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_model(tmp_path_factory.mktemp("models") / "vit")


def said(run: Run, source: str | None = None, **inputs: Any) -> list[dict[str, Any]]:
    found = chainrule.predict(run, source, **inputs)
    assert isinstance(found, list)
    return found


def test_a_network_from_scratch_learns_stripes(made: Run) -> None:
    assert made.summary["metrics"]["accuracy"] > 0.9
    recipe = read_recipe(made.path / "resolved.yaml")
    assert recipe.model.options == {"size": 16, "widths": [32, 64], "depth": 1}
    assert recipe.optimizer.learning_rate == convnet.LEARNING_RATE
    assert recipe.task.options["augmentation"]["rotation"] == 10.0
    card = (made.artifact.path / "README.md").read_text(encoding="utf-8")
    assert "# convnet, trained from scratch for image classification" in card
    assert "pipeline_tag: image-classification" in card
    assert "AutoModelForImageClassification" in card


def test_plain_transformers_says_the_same(made: Run, labels: Path) -> None:
    folder = made.artifact.path
    assert made.artifact.manifest.loads_in == ("transformers",)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    paths = [str(labels.parent / f"{number}.png") for number in range(6)]
    ours = said(made, text=paths)
    images = [Image.open(path).convert("RGB") for path in paths]
    with torch.inference_mode():
        shares = model(**processor(images=images, return_tensors="pt")).logits.softmax(-1)
    for row, (score, place) in zip(ours, zip(*(each.tolist() for each in shares.max(-1)), strict=True), strict=True):
        assert row["predicted_label"] == model.config.id2label[place]
        assert row["predicted_score"] == pytest.approx(score, abs=1e-4)


def test_evaluate_and_predict(made: Run, labels: Path, tmp_path: Path) -> None:
    report = chainrule.evaluate(made, split="validation")
    assert report.metrics["accuracy"].value == pytest.approx(made.summary["metrics"]["accuracy"])
    assert set(report.baselines) == {"pixels", "majority"}
    folder = said(made, str(labels.parent))
    assert len(folder) == 160
    one = said(made, str(labels.parent / "7.png"))
    assert [row["image"] for row in one] == ["7.png"]
    assert chainrule.predict(made, str(labels), out=tmp_path / "found.csv") == 160
    again = said(made, text={"image": [str(labels.parent / "7.png")]})
    assert one[0]["predicted_label"] == again[0]["predicted_label"]
    with pytest.raises(DataError, match="The images cannot be predicted") as caught:
        chainrule.predict(made, text=["nowhere.png"])
    assert caught.value.problems[0].got == "No such file or directory (nowhere.png)"


def test_a_second_run_gives_the_same_bits(made: Run, tmp_path: Path) -> None:
    assert chainrule.reproduce(made, out=tmp_path / "again").same_weights


@pytest.mark.parametrize("strategy", ["full", "head", "partial", "gradual", "lora", "bitfit"])
def test_a_pretrained_vision_transformer_by_every_strategy(
    vit: Path, labels: Path, strategy: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "task": TASK,
        "model": str(vit),
        "strategy": strategy,
        "training.steps": 6,
        "training.precision": "float32",
        "training.threads": 1,
    }
    run = chainrule.train(str(labels), out=tmp_path / "run", settings=settings)
    report = chainrule.evaluate(run, split="validation")
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], abs=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what PEFT asks of transformers
def test_adapters_kept_apart_load_by_the_lines_of_the_card(
    vit: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"task": TASK, "model": str(vit), "strategy": "lora", "strategy.options.merge": False}
    run = chainrule.train(str(labels), out=tmp_path / "run", settings={**settings, "training.steps": 2})
    assert run.artifact.manifest.loads_in == ("peft",)
    code = plain_use(TASK, ("peft",), repr(str(run.artifact.path)), repr(str(vit)), {}, ())
    exec(code.replace("…", str(labels.parent / "3.png")), {})
    found = said(run, text=[str(labels.parent / "3.png")])
    assert capsys.readouterr().out.strip() == found[0]["predicted_label"]


def test_kernels_change_nothing(vit: Path, labels: Path, tmp_path: Path) -> None:
    losses = []
    for on in (True, False):
        settings = {
            "task": TASK,
            "model": str(vit),
            "training.steps": 4,
            "training.precision": "float32",
            "training.threads": 1,
            "training.accelerate": on,
            "structure.dropout": 0.0,
            "structure.attention_dropout": 0.0,
        }
        run = chainrule.train(str(labels), out=tmp_path / f"run{on}", settings=settings)
        losses.append(run.summary["metrics"]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_what_images_do_not_have_is_refused(labels: Path, vit: Path, tmp_path: Path) -> None:
    base = {"task": TASK, "training.steps": 1}
    with pytest.raises(RecipeError) as caught:
        chainrule.train(str(labels), out=tmp_path / "a", settings={**base, "model": "convnet", "model.max_length": 64})
    assert str(caught.value).startswith("Images are resized, not cut.")
    with pytest.raises(RecipeError, match="convnet"):
        chainrule.train(str(labels), out=tmp_path / "b", settings={**base, "model": "convnet", "strategy": "lora"})
    with pytest.raises(RecipeError, match="text-classification"):
        chainrule.train(
            str(labels), out=tmp_path / "c", settings={**base, "task": "text-classification", "model": "convnet"}
        )
    with pytest.raises(ModelError):
        chainrule.train(str(labels), out=tmp_path / "d", settings={**base, "model": "minilm"})


def test_a_model_is_read_like_its_processor_reads(labels: Path) -> None:
    cells = [str(labels.parent / f"{number}.png") for number in range(20)]
    processor, options = processor_of(Options(), {"image": cells})
    assert options.size == 16
    encoded = encode(processor, {"image": cells}, None, 16)
    plain = processor(images=[Image.open(cell).convert("RGB") for cell in cells], return_tensors="np")["pixel_values"]
    assert encoded.pixels is not None
    assert np.allclose(encoded.pixels.read(np.arange(20)), plain, atol=1e-4)
    taken = encoded.take(np.array([3, 1]))
    assert taken.pixels is not None
    assert np.array_equal(taken.pixels.values, encoded.pixels.values[[3, 1]])


def test_baselines_of_images_are_kept_and_refused_when_broken(made: Run, labels: Path, tmp_path: Path) -> None:
    folder = made.path / "baselines"
    found = PixelModel.load(folder, 2)
    cells = {"image": [str(labels.parent / f"{number}.png") for number in range(5)]}
    assert set(found.predict(cells)) == {"pixels", "majority"}
    found.save(tmp_path / "copy")
    again = PixelModel.load(tmp_path / "copy", 2)
    assert np.array_equal(again.predict(cells)["pixels"].scores, found.predict(cells)["pixels"].scores)
    with pytest.raises(ModelError, match="Cannot read the baselines"):
        PixelModel.load(folder, 3)
