"""The kernels on models with adapters: which forwards go on, and that numbers stay what plain torch and PEFT give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chainrule.core.recipe import Spec, Structure
from chainrule.kernels import native
from chainrule.models.accelerate import accelerate, narrow_frozen, restore, widen_frozen
from chainrule.models.adapters import plain_model
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import make_strategy
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(params=["bert", "llama"])
def adapted(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Makes the same classifier with the same adapters, whose second halves are not zero, again and again."""
    folder = str(tiny_model(tmp_path / "model", request.param))

    def make(**options: Any) -> Any:
        tokenizer, kind = load_tokenizer(folder), "single_label_classification"
        structure = Structure(dropout=0.0 if request.param == "bert" else None, attention_dropout=0.0)
        model = load_classifier(folder, tokenizer, ["a", "b"], kind, structure, seed=0)
        model = make_strategy(Spec(name="lora", options={"rank": 4, **options})).prepare(model, print)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.1)
        return model.train()

    return make


def results(model: Any, half: bool) -> dict[str, torch.Tensor]:
    """Logits, and the gradients of what is trained."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = model(input_ids=IDS, attention_mask=MASK).logits.float()
    if logits.requires_grad:
        logits.square().sum().backward()
    gradients = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"logits": logits.detach()} | gradients


def targets(model: Any) -> list[str]:
    return ["query", "value"] if model.config.model_type == "bert" else ["q_proj", "v_proj"]


@pytest.mark.parametrize("how", ["all", "some", "disabled", "narrowed"])
def test_adapters_give_the_same_with_the_kernels(adapted: Callable[..., Any], how: str) -> None:
    """In float32 nearly to the digit; in bfloat16 as far from float32 as PEFT itself is."""
    options = {"targets": targets(adapted())} if how == "some" else {}
    plain, fast = adapted(**options), adapted(**options)
    accelerate(plain_model(fast), CPU)
    if how == "disabled":
        for model in (plain, fast):
            model.base_model.disable_adapter_layers()
    exact, rounded = results(plain, half=False), results(plain, half=True)
    if how == "narrowed":
        for model in (plain, fast):
            with torch.no_grad():
                for parameter in model.parameters():
                    if not parameter.requires_grad:
                        parameter.copy_(parameter.bfloat16())
        exact, rounded = results(plain, half=False), results(plain, half=True)
        narrow_frozen(fast, {name for name, p in fast.named_parameters() if p.requires_grad})
    else:
        ours = results(fast, half=False)
        assert ours.keys() == exact.keys()
        for name, value in exact.items():
            assert (ours[name] - value).norm() <= 1e-5 * (value.norm() + 0.1), name
    half = results(fast, half=True)
    assert half.keys() == exact.keys()
    for name, value in exact.items():
        allowed = 3 * (rounded[name] - value).norm() + 1e-2 * value.norm() + 3e-3
        assert (half[name] - value).norm() <= allowed, name


def test_frozen_weights_are_narrow_only_where_that_loses_nothing(adapted: Callable[..., Any]) -> None:
    model = adapted()
    accelerate(plain_model(model), CPU)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    narrow_frozen(model, trained)
    assert all(p.dtype == torch.float32 for p in model.parameters())  # random numbers have more digits
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in trained:
                parameter.copy_(parameter.bfloat16())
                before[name] = parameter.detach().clone()
    narrow_frozen(model, trained)
    formats = Counter(p.dtype for name, p in model.named_parameters() if name not in trained and p.ndim == 2)
    assert formats == {torch.bfloat16: sum(formats.values())}
    assert all(model.get_parameter(name).dtype == torch.float32 for name in trained)
    results(model, half=True)  # makes the stacks that several weights share
    widen_frozen(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    restore(plain_model(model))


def test_merged_weights_are_those_of_the_adapters_in_float32(adapted: Callable[..., Any]) -> None:
    model = adapted()
    accelerate(plain_model(model), CPU)
    narrow_frozen(model, {name for name, p in model.named_parameters() if p.requires_grad})
    results(model, half=True)
    widen_frozen(model)
    restore(plain_model(model))
    model.eval()
    with torch.inference_mode():
        apart = model(input_ids=IDS, attention_mask=MASK).logits
        merged = model.merge_and_unload()
        together = merged(input_ids=IDS, attention_mask=MASK).logits
    assert torch.allclose(apart, together, atol=1e-5)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler, or CHAINRULE_NATIVE=0")
def test_every_part_of_an_adapted_layer_has_its_forward(adapted: Callable[..., Any]) -> None:
    model = adapted()
    accelerate(plain_model(model), CPU)
    kinds = Counter(type(m.__dict__["forward"]).__name__ for m in model.modules() if "forward" in m.__dict__)
    layers = model.config.num_hidden_layers
    if model.config.model_type == "llama":
        assert (kinds["RotaryAttention"], kinds["Gated"], kinds["Adapted"]) == (layers, layers, 7 * layers)
        assert kinds["RootNorm"] == 2 * layers + 1
    else:
        assert (kinds["SelfAttention"], kinds["Intermediate"], kinds["Residual"]) == (layers, layers, 2 * layers)
        assert kinds["Adapted"] == 6 * layers
