"""The parts of a model, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chainrule.core.recipe import Spec, Structure
from chainrule.errors import ModelError
from chainrule.models.heads import scale_output, settle
from chainrule.models.inspect import anatomy, count_parameters, depths_below_head, output_layer
from chainrule.models.load import load_classifier, load_tokenizer, token_limit
from chainrule.strategies import make_strategy
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit
FAMILIES = ("bert", "roberta", "distilbert", "llama")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def load(folder: Path, seed: int = 0, structure: Structure | None = None) -> Any:
    tokenizer = load_tokenizer(str(folder))
    labels, kind = ["no", "yes"], "single_label_classification"
    return load_classifier(str(folder), tokenizer, labels, kind, structure or Structure(), seed=seed)


def test_every_parameter_has_one_role(folder: Path) -> None:
    model = load(folder)
    parts = anatomy(model)
    names = [*parts.embeddings, *(name for layer in parts.layers for name in layer), *parts.head]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(parts.layers) == 2
    assert len({len(layer) for layer in parts.layers}) == 1
    assert all("embed" in name.lower() for name in parts.embeddings)
    assert any(
        output_layer(model).weight is parameter for name, parameter in model.named_parameters() if name in parts.head
    )
    assert count_parameters(model) == sum(parameter.numel() for parameter in model.parameters())


def test_depth_is_counted_from_the_head_down(folder: Path) -> None:
    model = load(folder)
    parts, depths = anatomy(model), depths_below_head(model)
    assert depths.keys() == dict(model.named_parameters()).keys()
    assert {depths[name] for name in parts.head} == {0}
    assert [{depths[name] for name in layer} for layer in parts.layers] == [{2}, {1}]
    assert {depths[name] for name in parts.embeddings} == {3}


def test_adapters_have_the_role_of_what_they_are_put_on(folder: Path) -> None:
    model = make_strategy(Spec(name="lora")).prepare(load(folder), print)
    parts, plain = anatomy(model), anatomy(load(folder))
    names = [*parts.embeddings, *(name for layer in parts.layers for name in layer), *parts.head]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert parts.embeddings == tuple(f"base_model.model.{name}" for name in plain.embeddings)
    for number, layer in enumerate(parts.layers):
        adapters = [name for name in layer if ".lora_" in name]
        assert adapters
        assert all(f".{number}." in name for name in layer)
    assert all("modules_to_save" in name or "original_module" in name or "norm" in name for name in parts.head)


def test_the_seed_decides_the_head_and_nothing_else(folder: Path) -> None:
    same, again, other = (output_layer(load(folder, seed)).weight for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_labels_are_written_to_the_config(folder: Path) -> None:
    model = load(folder)
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.label2id == {"no": 0, "yes": 1}


def test_the_longest_row_that_fits_the_model(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert token_limit(str(folder), tokenizer, None) == 64
    with pytest.raises(ModelError, match="cannot be used") as caught:
        token_limit(str(folder), tokenizer, 65)
    assert caught.value.problems[0].expected == "max_length of at most 64"


def test_dropout_can_be_overridden(tiny_bert: Path) -> None:
    model = load(tiny_bert, structure=Structure(dropout=0.3, attention_dropout=0.0))
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == (0.3, 0.0)


def test_a_scaled_head_settles_to_a_plain_layer_with_the_same_outputs(tiny_bert: Path) -> None:
    model = load(tiny_bert).eval()
    scale_output(model, np.array([100.0, 300.0, 200.0]))
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        settle(model)
        after = model(input_ids=ids).logits
    assert before.mean() == pytest.approx(200.0, abs=100.0)
    assert torch.allclose(before, after, rtol=1e-6)
    assert not any("parametrizations" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("name", "got"),
    [("./nowhere", "no such folder"), ("/nowhere/at/all", "no such folder")],
)
def test_a_folder_that_is_not_there(name: str, got: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(name)
    assert caught.value.message == f"The model {name!r} cannot be used."
    assert caught.value.problems[0].got == got
    assert caught.value.problems[0].todo == "See `chainrule show catalog`."


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.problems[0].expected == "a folder with config.json"


def test_weights_that_are_not_safetensors_are_not_loaded(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    weights = {"x": torch.zeros(1)}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be used"):
        load(folder)
