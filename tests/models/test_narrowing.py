"""Fewer layers, neurons and heads: what is left computes what the model did without those that went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, ModernBertConfig

from chainrule.models.inspect import layer_stack
from chainrule.models.narrowing import (
    Cut,
    allowed_groups,
    anchors_of,
    cut,
    frame_of,
    heads_can_go,
    kept_of,
    linear_of,
)
from chainrule.testing.models import tiny_encoder_decoder, tiny_model, tiny_vision_model

pytestmark = pytest.mark.unit
FAMILIES = ("bert", "roberta", "distilbert", "llama", "qwen2", "vit", "modernbert")


def _made(family: str, folder: Path) -> Any:
    if family == "modernbert":
        torch.manual_seed(0)
        ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return AutoModel.from_config(ModernBertConfig(vocab_size=96, **sizes, **ends)).eval()
    make = tiny_vision_model if family == "vit" else lambda place: tiny_model(place, family)
    return AutoModel.from_pretrained(make(folder / family)).eval()


def _said(model: Any) -> torch.Tensor:
    if model.config.model_type == "vit":
        given = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    else:
        given = {"input_ids": torch.arange(5, 23).view(2, 9)}
    states: torch.Tensor = model(**given)[0]
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_says_what_the_model_says_without_the_rest(family: str, tmp_path: Path) -> None:
    model = _made(family, tmp_path)
    found = anchors_of(model)
    assert found is not None
    frame = frame_of(model, found, 9)
    assert (frame.layers, frame.neurons) == (2, 64)
    assert frame.groups == (2 if family == "llama" else 1)
    draw = torch.Generator().manual_seed(3)
    neurons = tuple(torch.randperm(64, generator=draw)[:24].sort().values for _ in range(2))
    groups = tuple(torch.tensor([place]) if frame.groups > 1 else torch.tensor([0]) for place in (1, 0))
    with torch.no_grad():
        for place, layer in enumerate(layer_stack(model)):
            without = torch.ones(64, dtype=torch.bool)
            without[neurons[place]] = False
            linear_of(layer, found.down).weight[:, without] = 0
            if frame.groups > 1:
                columns = linear_of(layer, found.attended).weight.view(32, 2, 16)
                columns[:, 1 - int(groups[place])] = 0
        wanted = _said(model)
        cut(model, found, Cut((0, 1), neurons, groups))
        torch.testing.assert_close(_said(model), wanted, rtol=1e-4, atol=1e-5)
        folder = tmp_path / "small"
        model.save_pretrained(folder)
        torch.testing.assert_close(_said(AutoModel.from_pretrained(folder).eval()), wanted, rtol=1e-4, atol=1e-5)
    smaller = frame_of(model, found, 9)
    left = frame.work(2, 24, 1)
    assert smaller.whole == pytest.approx(left)
    assert left < frame.whole


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "vit"])
def test_layers_that_go(family: str, tmp_path: Path) -> None:
    model = _made(family, tmp_path)
    found = anchors_of(model)
    assert found is not None
    every = tuple(torch.arange(64) for _ in range(2))
    groups = tuple(torch.arange(frame_of(model, found, 9).groups) for _ in range(2))
    upper = layer_stack(model)[1]
    cut(model, found, Cut((1,), every, groups))
    assert len(layer_stack(model)) == model.config.num_hidden_layers == 1
    assert layer_stack(model)[0] is upper
    model.save_pretrained(tmp_path / "small")
    torch.testing.assert_close(_said(AutoModel.from_pretrained(tmp_path / "small").eval()), _said(model))


def test_the_work_is_what_the_matrices_take(tmp_path: Path) -> None:
    """Of two layers of width 32 with 64 neurons: 4 · 32² + 2 · 32 · 64 weights each, and attention over 10 tokens."""
    model = _made("bert", tmp_path)
    found = anchors_of(model)
    assert found is not None
    assert frame_of(model, found, 10).whole == 2 * (4 * 32**2 + 2 * 32 * 64 + 2 * 10 * 32)


def test_where_heads_can_go(tmp_path: Path) -> None:
    """Where the config says how wide a head is; and only so many as it takes."""
    for family, can in (("bert", False), ("distilbert", False), ("qwen2", False), ("llama", True)):
        model = _made(family, tmp_path)
        found = anchors_of(model)
        assert found is not None
        assert heads_can_go(model, found) is can
        if can:
            assert allowed_groups(model, frame_of(model, found, 9)) == [2, 1]


def test_other_models_are_of_no_known_family(tmp_path: Path) -> None:
    assert anchors_of(AutoModel.from_pretrained(tiny_encoder_decoder(tmp_path / "t5"))) is None
    assert anchors_of(torch.nn.Linear(2, 2)) is None


def test_of_equals_the_first_stay() -> None:
    assert kept_of(torch.tensor([1.0, 3.0, 1.0, 3.0, 0.0]), 3).tolist() == [0, 1, 3]
