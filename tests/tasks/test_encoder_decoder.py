"""Encoder-decoders: what is learned of a row, parity with transformers' own loss, and other ways to train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from chainrule.core.recipe import Spec
from chainrule.data.batch import IGNORED, Batch, collate
from chainrule.data.encode import Encoded
from chainrule.data.texts import Texts
from chainrule.data.written import as_target
from chainrule.errors import ModelError
from chainrule.models.accelerate import accelerate, restore
from chainrule.models.inspect import anatomy, layer_stack, parts
from chainrule.tasks.encoder_decoder import (
    Paired,
    check_model,
    find_labelled,
    objective,
    prepare_tokenizer,
    read,
)
from chainrule.tasks.objectives import backward
from chainrule.testing.models import tiny_encoder_decoder

pytestmark = pytest.mark.unit
SOURCES = ["good film", "a very bad and dull book it was", "cold"]
TARGETS = ["film good", "book", "warm and cold we had"]
FAMILIES = ("t5", "bart", "marian")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny_encoder_decoder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Any, Any]:
    folder = folders[request.param]
    return AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer: Any, max_length: int = 64, instruction: str | None = None) -> Encoded:
    targets = Texts.of(as_target([text]) for text in TARGETS)
    return Paired(instruction)(tokenizer, {"source": SOURCES}, targets, max_length)


def batch_of(tokenizer: Any, rows: list[int] | None = None) -> Batch:
    chosen = np.array([0, 1, 2] if rows is None else rows)
    made = encoded(tokenizer)
    return collate(made, chosen, pad_id=tokenizer.pad_token_id, left=False, device=torch.device("cpu"))


def test_a_row_is_its_source_and_its_target_which_ends_once(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    rows = encoded(tokenizer)
    assert rows.sequences is not None
    assert rows.trained is not None
    assert rows.sequences.tolist() == [0, 2, 4, 6]
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        one = rows.take(np.array([row]))
        ids = np.split(one.ids, one.offsets[1:-1])
        assert ids[0].tolist() == tokenizer(source)["input_ids"]
        assert tokenizer.decode(ids[1][:-1]) == target
        assert (ids[1] == tokenizer.eos_token_id).sum() == 1
        assert ids[1][-1] == tokenizer.eos_token_id
        assert one.trained is not None
        assert one.trained.tolist() == [False] * len(ids[0]) + [True] * len(ids[1])
        assert one.targets.tolist() == [len(ids[1])]


def test_a_tokenizer_that_ends_nothing_gets_its_targets_ended(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    with_end = encoded(tokenizer).ids[encoded(tokenizer).trained].tolist()
    tokenizer.backend_tokenizer.post_processor = None
    rows = encoded(tokenizer)
    assert rows.ids[rows.trained].tolist() == with_end


def test_an_end_in_the_middle_of_a_text_is_none(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    rows = Paired(None)(tokenizer, {"source": ["film"]}, Texts.of([as_target(["good [SEP] book"])]), 64)
    assert rows.ids[rows.offsets[1] :].tolist() == tokenizer("good book")["input_ids"]


def test_targets_that_are_too_long_do_not_end(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    rows = encoded(tokenizer, 4)
    assert rows.full_lengths.tolist() == [3, 9, 6]
    last = rows.ids[rows.offsets[2::2] - 1]
    assert (last == tokenizer.eos_token_id).tolist() == [True, True, False]
    assert np.diff(rows.offsets).max() == 4


def test_an_instruction_stands_before_each_source(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    rows = encoded(tokenizer, instruction="we had")
    assert tokenizer.decode(rows.ids[: rows.offsets[1]], skip_special_tokens=True) == "we had good film"


def test_loss_and_gradients_are_those_of_transformers(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model = model.double()
    batch = batch_of(tokenizer)
    loss, count = objective(Spec(name="default"), np.zeros(3)).accumulate(model, batch)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    inputs = tokenizer(SOURCES, padding=True, return_tensors="pt")
    labels = tokenizer(text_target=TARGETS, padding=True, return_tensors="pt")["input_ids"]
    labels[labels == tokenizer.pad_token_id] = IGNORED
    own = model(**inputs, labels=labels).loss * (labels != IGNORED).sum()
    backward(own)
    assert count == int((labels != IGNORED).sum())
    torch.testing.assert_close(loss.double(), own.detach(), atol=1e-9, rtol=1e-9)
    for name, parameter in model.named_parameters():
        if name not in found:
            assert "embed_positions" in name, "Marian computes them"
            continue
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_torch(loaded: tuple[Any, Any], share: float) -> None:
    model, tokenizer = loaded
    model = model.double()
    batch = batch_of(tokenizer)
    made = objective(Spec(name="cross-entropy", options={"label_smoothing": share}), np.zeros(3))
    loss, _ = made.accumulate(model, batch)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    states, wanted, _, logits = find_labelled(model, batch)
    expected = functional.cross_entropy(logits(states), wanted, label_smoothing=share, reduction="sum")
    backward(expected)
    torch.testing.assert_close(loss.double(), expected.detach(), atol=1e-9, rtol=1e-9)
    for name, parameter in model.named_parameters():
        if name not in found:
            assert "embed_positions" in name, "Marian computes them"
            continue
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-9, rtol=1e-7, msg=name)


def test_padding_changes_nothing(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model.eval()
    with torch.no_grad():
        together = read(model, batch_of(tokenizer), encoded(tokenizer))
        alone = [read(model, batch_of(tokenizer, [row]), encoded(tokenizer)) for row in range(3)]
    assert together.losses is not None
    assert together.losses.tolist() == pytest.approx(
        [float(each.losses[0]) for each in alone if each.losses is not None]
    )
    assert together.values.tolist() == [int(each.values[0]) for each in alone]


@pytest.mark.parametrize("autocast", [False, True])
def test_the_kernels_change_no_logits(loaded: tuple[Any, Any], autocast: bool) -> None:
    model, tokenizer = loaded
    batch = batch_of(tokenizer)
    model.train()

    def scores() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            states, _, _, logits = find_labelled(model, batch)
            values = logits(states).float()
        backward(values.square().mean())
        return values.detach(), model.get_input_embeddings().weight.grad.clone()

    plain = scores()
    accelerate(model, torch.device("cpu"))
    fast = scores()
    restore(model)
    bound = 0.06 if autocast else 1e-5
    for mine, theirs in zip(fast, plain, strict=True):
        assert float((mine - theirs).abs().max()) <= bound * float(theirs.abs().max())
    torch.testing.assert_close(scores()[0], plain[0])


def test_layers_go_from_the_encoder_up_to_the_decoder(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    roles = anatomy(model)
    assert len(layer_stack(model)) == len(roles.layers) == 4
    assert all("encoder." in name for layer in roles.layers[:2] for name in layer)
    assert all("decoder." in name for layer in roles.layers[2:] for name in layer)
    assert all("decoder.final_layer_norm" in name for name in roles.head)
    every = [*roles.embeddings, *(name for layer in roles.layers for name in layer), *roles.head]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())
    assert [part.name for part in parts(model)][:2] == ["embeddings", "layer 0"]


def test_a_model_with_another_way_to_logits_is_refused(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    check_model(model)
    whole = model.forward

    def other(**inputs: Any) -> Any:
        output = whole(**inputs)
        output.logits = output.logits * 2
        return output

    model.forward = other
    with pytest.raises(ModelError, match="another way from the decoder's states to logits"):
        check_model(model)


@pytest.mark.parametrize(("missing", "got"), [("eos_token", "no eos_token"), ("pad_token", "no pad_token")])
def test_a_tokenizer_without_ends_is_refused(loaded: tuple[Any, Any], missing: str, got: str) -> None:
    _, tokenizer = loaded
    setattr(tokenizer, missing, None)
    with pytest.raises(ModelError, match=got):
        prepare_tokenizer(tokenizer)
