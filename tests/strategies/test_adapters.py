"""Adapters: what is trained, what is saved, and that merging changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import Spec, Structure
from chainrule.errors import ChainruleError, ModelError, RecipeError
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.models.adapters import merged
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.models.quantized import hold
from chainrule.strategies import make_strategy
from chainrule.strategies.lora import Lora
from chainrule.testing.data import rated, sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit

TEXTS = ["a good film", "bad book and a dull room", "we had it"]


OWN = {
    "lora": ("lora_A", "lora_B"),
    "dora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "qlora": ("lora_A", "lora_B"),
    "ia3": ("ia3_l",),
    "prompt": ("prompt_embeddings",),
}
MERGED = ("lora", "dora", "qlora", "ia3")


def train(base: Path, data: Path, out: Path, **more: Any) -> Run:
    settings = {"model": str(base), "strategy": "lora", "training.steps": 12, "optimizer.learning_rate": 1e-2}
    settings |= {"training.precision": "float32", "training.threads": 1, **more}
    return chainrule.train(str(data), out=out, settings=settings)


def logits(predictor: Predictor, texts: list[str]) -> np.ndarray:
    with torch.inference_mode():
        batch = predictor.tokenizer(texts, padding=True, return_tensors="pt")
        found: np.ndarray = predictor.forward.model(**batch).logits.numpy()
    return found


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("labelled") / "data.csv", sentences(120))


@pytest.fixture(scope="module", params=OWN)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, labelled: Path, method: str) -> Run:
    out = tmp_path_factory.mktemp(method) / "run"
    options = {"merge": False} if method in MERGED else {}
    return train(tiny_bert, labelled, out, **{"strategy.name": method, "strategy.options": options})


def test_a_folder_of_adapters_holds_what_was_trained_and_names_its_base(
    adapters: Run, method: str, tiny_bert: Path
) -> None:
    folder = adapters.artifact.path
    assert not (folder / "model.safetensors").exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == (tiny_bert.name, "SEQ_CLS")
    kept = load_file(folder / "adapter_model.safetensors")
    assert all(any(part in name for part in (*OWN[method], "classifier", "pooler")) for name in kept)
    for part in (*OWN[method], "classifier", "pooler"):
        assert any(part in name for name in kept), part
    assert sum(value.numel() for value in kept.values()) == adapters.summary["trained_parameters"]
    assert adapters.artifact.manifest.loads_in == ("peft",)
    text = "".join(file.read_text(errors="replace") for file in folder.iterdir() if file.suffix in (".json", ".md"))
    assert str(tiny_bert) not in text


def test_adapters_load_in_plain_peft(adapters: Run, method: str, tiny_bert: Path) -> None:
    folder = adapters.artifact.path
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, config=AutoConfig.from_pretrained(folder))
    if method == "qlora":  # they belong to the rounded weights
        hold(base)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    predictor = load_predictor(adapters.artifact)
    with torch.inference_mode():
        found = model(**predictor.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(found, logits(predictor, TEXTS), atol=1e-6)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("name", MERGED)
def test_merged_and_not_give_the_same_logits(name: str, tiny_bert: Path, labelled: Path, tmp_path: Path) -> None:
    apart, together = (
        train(
            tiny_bert, labelled, tmp_path / word, **{"strategy.name": name, "strategy.options.merge": word == "merged"}
        )
        for word in ("apart", "merged")
    )
    assert together.artifact.manifest.loads_in == ("transformers",)
    found, wanted = (logits(load_predictor(run.artifact), TEXTS) for run in (together, apart))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(wanted - wanted.mean()).max() > 0.01
    assert together.summary["metrics"] == apart.summary["metrics"]
    (checked,) = [event for event in together.events() if event["event"] == "merged"]
    assert checked["rows"] == 8
    assert checked["largest_difference_of_losses"] < 1e-5


def test_evaluate_and_predict_with_adapters(adapters: Run, labelled: Path) -> None:
    report = chainrule.evaluate(adapters, str(labelled), split="validation")
    assert report.metrics["accuracy"].value == pytest.approx(adapters.summary["metrics"]["accuracy"])
    rows = chainrule.predict(adapters, text=TEXTS)
    assert isinstance(rows, list)
    assert {row["predicted_label"] for row in rows} <= {"negative", "positive"}


def test_what_is_left_open_is_written_out(adapters: Run, method: str) -> None:
    options = adapters.artifact.manifest.recipe["strategy"]["options"]
    low_rank = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear", "merge": False}
    others = {"ia3": {"targets": None, "merge": False}, "prompt": {"tokens": 20}}
    assert options == others.get(method, low_rank)


def test_a_merge_that_changes_the_model_is_noticed(
    tiny_bert: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(model: Any) -> Any:
        plain = merged(model)
        plain.classifier.weight.data.mul_(1.1)
        return plain

    monkeypatch.setattr("chainrule.strategies.lora.merged", spoilt)
    with pytest.raises(ChainruleError, match="The merged model is not the one that was trained") as caught:
        train(tiny_bert, labelled, tmp_path / "run")
    assert "merge=false" in caught.value.problems[0].todo


def test_adapters_without_their_run_need_their_base_by_name(adapters: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in adapters.artifact.path.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError):
        chainrule.predict(moved, text="a film")


def test_another_base_of_the_same_name_is_refused(tmp_path: Path, labelled: Path) -> None:
    base = tiny_model(tmp_path / "base")
    run = train(base, labelled, tmp_path / "run", **{"strategy.options.merge": False, "training.steps": 1})
    for file in base.iterdir():
        file.unlink()
    tiny_model(base, seed=1)
    with pytest.raises(ModelError, match="not the one that this artifact was made from"):
        chainrule.predict(run, text="a film")


@pytest.mark.parametrize(("name", "merge"), [("lora", True), ("lora", False), ("ia3", True), ("prompt", None)])
def test_a_regression_keeps_its_scale(name: str, merge: bool | None, tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", rated(80, mean=1000.0, scale=50.0))
    settings = {"strategy.name": name, **({} if merge is None else {"strategy.options.merge": merge})}
    run = train(tiny_bert, data, tmp_path / "run", task="regression", **settings)
    rows = chainrule.predict(run, text=TEXTS)
    assert isinstance(rows, list)
    assert all(700 < row["predicted_score"] < 1300 for row in rows)
    report = chainrule.evaluate(run, str(data), split="validation")
    assert report.metrics["rmse"].value == pytest.approx(run.summary["metrics"]["rmse"], rel=1e-4)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "llama"])
@pytest.mark.parametrize("name", MERGED)
def test_other_families(family: str, name: str, tmp_path: Path, labelled: Path) -> None:
    base = tiny_model(tmp_path / "base", family)
    run = train(base, labelled, tmp_path / "run", **{"training.steps": 2, "strategy.name": name})
    assert 0 < run.summary["trained_parameters"] < run.summary["parameters"]
    chainrule.predict(run, text=TEXTS)


def lora_on(base: Path, **options: Any) -> tuple[Lora, Any, list[str]]:
    told: list[str] = []
    tokenizer = load_tokenizer(str(base))
    kind = "single_label_classification"
    model = load_classifier(str(base), tokenizer, ["a", "b"], kind, Structure(), seed=0)
    strategy = make_strategy(Spec(name="lora", options=options))
    assert isinstance(strategy, Lora)
    return strategy, strategy.prepare(model, told.append), told


def test_targets_can_be_named(tiny_bert: Path) -> None:
    _, model, _ = lora_on(tiny_bert, targets=["query", "attention.output.dense"], rank=2, alpha=3, dropout=0.25)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 3, 0.25)
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(adapted) == 4
    assert all(name.endswith((".query", "attention.output.dense")) for name in adapted)


def test_targets_that_do_not_exist(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        lora_on(tiny_bert, targets=["query", "q_proj", "classifier"])
    assert str(caught.value.problems[0]) == (
        "field 'strategy.options.targets': expected endings of names of linear layers: query, key, value, dense, "
        "got 'q_proj', 'classifier'. Choose among these, or leave it at all-linear."
    )


def test_a_base_on_the_hub_keeps_the_adapters_apart(tiny_bert: Path) -> None:
    strategy, _, told = lora_on(tiny_bert)
    assert strategy.options.merge is True
    assert told[0].startswith("The base model has no name on the hub")
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
    model.name_or_path = "somebody/some-model"
    strategy = Lora(strategy.options.model_copy(update={"merge": None}))
    strategy.prepare(model, told.append)
    assert strategy.options.merge is False
    assert told[1].endswith("on top of the base model from the hub.")


@pytest.mark.parametrize(
    ("family", "outputs", "inputs"),
    [
        ("bert", ("key", "value"), ("output.dense",)),
        ("distilbert", ("k_lin", "v_lin"), ("lin2",)),
        ("llama", ("k_proj", "v_proj"), ("down_proj",)),
    ],
)
def test_ia3_finds_keys_values_and_the_ends_of_feed_forward_parts(
    family: str, outputs: tuple[str, ...], inputs: tuple[str, ...], tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base", family)
    tokenizer = load_tokenizer(str(base))
    model = load_classifier(str(base), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
    model = make_strategy(Spec(name="ia3")).prepare(model, print)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if ".ia3_l." in name}
    found = {name.partition(".ia3_l")[0].partition("base_model.model.")[2]: shape for name, shape in shapes.items()}
    assert len(found) == 6
    for name, shape in found.items():
        assert name.endswith(outputs if shape[1] == 1 else inputs), name
    assert {shape for shape in found.values() if shape[0] == 1} == {(1, 64)}


def test_ia3_on_a_model_whose_layers_have_other_names(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.strategies.ia3._APART", ("k_proj",))
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
    with pytest.raises(RecipeError) as caught:
        make_strategy(Spec(name="ia3")).prepare(model, print)
    assert str(caught.value.problems[0]) == (
        "field 'strategy.options.targets': expected endings of names of linear layers: query, key, value, dense, "
        "got null, and no layers named like keys and values. "
        "Name the layers that make keys and values, and the last one of the feed-forward part."
    )


def test_weights_in_int8_take_a_quarter_and_come_back(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    model, plain = (
        load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
        for _ in range(2)
    )
    told: list[str] = []
    strategy = make_strategy(Spec(name="qlora", options={"merge": True}))
    model = strategy.prepare(model, told.append)
    assert told[0] == "The frozen linear layers take 0 MB instead of 0."
    held = {name: value for name, value in model.named_parameters() if value.dtype == torch.int8}
    assert len(held) == 12
    assert not any("classifier" in name or "pooler" in name or "embeddings" in name for name in held)
    found, wanted = strategy.finish(model).state_dict(), plain.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        largest = float(value.abs().max())
        assert torch.allclose(found[name], value, atol=largest / 127 / 2 * 1.001), name
    assert sum(not torch.equal(found[name], wanted[name]) for name in wanted) == 12


def test_layers_in_few_bits_elsewhere_than_on_a_cpu_or_cuda(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
    with pytest.raises(RecipeError) as caught:
        hold(model.to("meta"))
    assert str(caught.value.problems[0]) == (
        "field 'strategy.name': expected linear layers (torch.nn.Linear) on a CPU or on CUDA, got 12 of them on meta. "
        "Use --strategy lora."
    )
