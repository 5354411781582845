"""The loss at labelled positions, against plain cross-entropy on all logits in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertLMHeadModel, MambaConfig, MambaForCausalLM

from chainrule.core.recipe import Spec
from chainrule.data.batch import IGNORED, Batch
from chainrule.errors import ModelError, RecipeError
from chainrule.models.accelerate import accelerate
from chainrule.models.adapters import linear_modules, plain_model, put_on
from chainrule.tasks.language_model import (
    NextTokenObjective,
    check_model,
    chunked_cross_entropy,
    labelled,
    objective,
    packs,
    read,
)
from chainrule.testing.models import tiny_language_model

pytestmark = pytest.mark.unit


def batch_of(vocabulary: int, *, seed: int = 0) -> Batch:
    """Three rows of different length, some tokens labelled in each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (3, 12), generator=generator)
    mask = torch.arange(12)[None, :] < torch.tensor([12, 9, 5])[:, None]
    chosen = (torch.rand(3, 12, generator=generator) < 0.5) & mask
    chosen[:, 0], chosen[:, 3] = False, True
    targets = torch.where(chosen, ids, IGNORED)
    return Batch({"input_ids": ids, "attention_mask": mask.long()}, targets, np.arange(3), int(mask.sum()))


def plain_loss(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(**batch.inputs, use_cache=False).logits
    assert batch.targets is not None
    flat, wanted = logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten()
    return functional.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="sum")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_adapters(model: Any) -> Any:
    config = peft.LoraConfig(r=4, target_modules=list(linear_modules(model)), task_type="CAUSAL_LM")
    adapted = put_on(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return adapted


@pytest.mark.parametrize("chunk", [1, 4, 1024])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_is_plain_cross_entropy_in_float64(chunk: int, tied: bool, adapted: bool) -> None:
    model = tiny_language_model(tied=tied).double()
    model = with_adapters(model).double() if adapted else model
    batch = batch_of(model.config.vocab_size)
    total, count = NextTokenObjective(chunk).accumulate(model, batch)
    found = gradients(model)
    model.zero_grad()
    expected = plain_loss(model, batch)
    expected.backward()  # type: ignore[no-untyped-call]
    assert batch.targets is not None
    assert count == int((batch.targets[:, 1:] != IGNORED).sum())
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-12)
    wanted = gradients(model)
    assert found.keys() == wanted.keys()
    assert all(("lora_" in name) == adapted for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_passes_gradcheck() -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 7, bias=False).double()
    targets = torch.tensor([1, 0, 6, 3, 2])

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, states: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                total, gradient = chunked_cross_entropy(states.detach().requires_grad_(), targets, head, chunk=2)
            context.gradient = gradient
            return total

        @staticmethod
        def backward(context: Any, *upper: torch.Tensor) -> torch.Tensor:
            gradient: torch.Tensor = upper[0] * context.gradient
            return gradient

    states = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Summed.apply, (states,))


def test_micro_batches_add_up_to_one_batch() -> None:
    model = tiny_language_model()
    batch = batch_of(model.config.vocab_size)
    whole, count = NextTokenObjective().accumulate(model, batch)
    expected = gradients(model)
    model.zero_grad()
    total, tokens = 0.0, 0
    for row in range(3):
        inputs = {name: value[row : row + 1] for name, value in batch.inputs.items()}
        assert batch.targets is not None
        loss, part = NextTokenObjective().accumulate(
            model, Batch(inputs, batch.targets[row : row + 1], np.arange(1), 1)
        )
        total, tokens = total + float(loss), tokens + part
    assert tokens == count
    assert total == pytest.approx(float(whole), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def packed(batch: Batch) -> Batch:
    """The rows of a padded batch side by side."""
    assert batch.targets is not None
    mask = batch.inputs["attention_mask"].bool()
    targets = batch.targets.clone()
    targets[:, 0] = IGNORED
    places = (mask.cumsum(1) - 1)[mask]
    inputs = {"input_ids": batch.inputs["input_ids"][mask][None], "position_ids": places[None]}
    return Batch(inputs, targets[mask][None], batch.rows, batch.tokens)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_rows_side_by_side_give_the_gradients_of_padded_rows(adapted: bool, half: bool) -> None:
    model = tiny_language_model()
    model = with_adapters(model) if adapted else model
    batch = batch_of(model.config.vocab_size)
    expected_loss, expected_count = NextTokenObjective().accumulate(model, batch)
    expected = gradients(model)
    if half:
        accelerate(plain_model(model), torch.device("cpu"))
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss, count = NextTokenObjective().accumulate(model, packed(batch))
    assert count == expected_count
    assert float(loss) == pytest.approx(float(expected_loss), rel=0.02 if half else 1e-6)
    for name, gradient in gradients(model).items():
        apart = float((gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-6))
        assert apart < (0.15 if half else 1e-4), name


def test_only_models_that_keep_rows_apart_are_packed() -> None:
    assert packs(tiny_language_model())
    config = MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert not packs(MambaForCausalLM(config))  # it carries a state from token to token


@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_under_bfloat16_autocast(adapted: bool) -> None:
    model = tiny_language_model()
    model = with_adapters(model) if adapted else model
    batch = batch_of(model.config.vocab_size)
    exact, _ = NextTokenObjective().accumulate(model, batch)
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = NextTokenObjective(chunk=4).accumulate(model, batch)
    assert float(total) == pytest.approx(float(exact), rel=0.02)
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        apart = float((gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-6))
        assert apart < 0.15, name


def test_reading_gives_each_row_its_own_loss() -> None:
    model = tiny_language_model().eval()
    batch = batch_of(model.config.vocab_size)
    with torch.inference_mode():
        found = read(model, batch, SimpleNamespace(sequences=None))
        logits = model(**batch.inputs).logits
    assert batch.targets is not None
    assert found.losses is not None
    for row in range(3):
        _, wanted, _ = labelled(logits[row : row + 1], batch.targets[row : row + 1])
        states = logits[row, :-1][batch.targets[row, 1:] != IGNORED]
        assert found.losses[row] == pytest.approx(float(functional.cross_entropy(states, wanted)), rel=1e-5)
        assert found.values[row] == int((states.argmax(-1) == wanted).sum())
        assert found.scores[row] == pytest.approx(float(np.exp(-found.losses[row])))


def test_a_model_that_sees_the_whole_text_is_refused() -> None:
    check_model(tiny_language_model())
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        is_decoder=False,
    )
    with pytest.raises(ModelError) as caught:
        check_model(BertLMHeadModel(config))
    assert caught.value.problems[0].expected == "a causal language model, which reads from left to right"


def test_has_one_loss() -> None:
    objective(Spec(name="default"), np.ones(1))
    with pytest.raises(RecipeError, match="no loss"):
        objective(Spec(name="focal"), np.ones(1))
