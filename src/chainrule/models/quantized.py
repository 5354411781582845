"""Frozen linear layers held in few bits: int8 on a CPU, nf4 through bitsandbytes on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chainrule.errors import Problem, RecipeError, Where
from chainrule.kernels.int8 import from_int8, int8_linear, to_int8
from chainrule.models.adapters import linear_modules
from chainrule.system.extras import require


class Int8Linear(nn.Linear):
    """A frozen linear layer in int8: a quarter of the memory of float32.

    Attributes:
        weight: (outputs, inputs) int8.
        scales: (outputs,) float32; no buffer, so that they stay float32 whatever the rest of a model is turned into.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight, self.scales = to_int8(layer.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return int8_linear(input, self.weight, self.scales, self.bias)

    def widened(self) -> nn.Linear:
        """The same layer in float32."""
        return _linear(from_int8(self.weight, self.scales), self.bias)


def hold(model: Any) -> tuple[int, int]:
    """Hold the linear layers of a model's trunk in few bits, as its device can: they cannot be trained any more.

    Returns:
        Bytes of these layers' weights before and after.

    Raises:
        RecipeError: the device is neither a CPU nor CUDA, or there are no linear layers.
        MissingExtraError: the device is CUDA and bitsandbytes is not installed.
    """
    layers = {name: layer for name, layer in linear_modules(model).items() if type(layer) is nn.Linear}
    if model.device.type not in ("cpu", "cuda") or not layers:
        problem = Problem(
            where=Where(field="strategy.name"),
            expected="linear layers (torch.nn.Linear) on a CPU or on CUDA",
            got=f"{len(layers)} of them on {model.device.type}",
            todo="Use --strategy lora.",
        )
        raise RecipeError("The weights of this model cannot be held in few bits.", [problem])
    before = after = 0
    for name, layer in layers.items():
        held = Int8Linear(layer) if model.device.type == "cpu" else _nf4(layer)
        before, after = before + layer.weight.nbytes, after + held.weight.nbytes
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, held)
    return before, after


def widen(model: nn.Module) -> None:
    """Undo `hold`: plain linear layers again, with the values that were computed with."""
    for parent in list(model.modules()):
        for child, layer in parent.named_children():
            if isinstance(layer, Int8Linear):
                setattr(parent, child, layer.widened())
            elif type(layer).__name__ == "Linear4bit":
                setattr(parent, child, _from_nf4(layer))


def _linear(weight: torch.Tensor, bias: nn.Parameter | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = bias  # type: ignore[assignment]
    return layer


def _nf4(layer: nn.Linear) -> nn.Linear:
    """Dettmers et al. (2023), QLoRA, section 3: 4-bit NormalFloat in blocks of 64, the blocks' scales in 8 bits."""
    parts = require("bitsandbytes", extra="qlora", purpose="The strategy 'qlora' on CUDA").nn
    held: nn.Linear = parts.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=torch.float32,  # autocast narrows products all the same, and without it merging is exact
        quant_type="nf4",
    )
    device, options = layer.weight.device, {"quant_type": "nf4", "compress_statistics": True}
    held.weight = parts.Params4bit(layer.weight.detach().cpu(), requires_grad=False, **options).to(device)
    held.bias = layer.bias
    return held


def _from_nf4(layer: Any) -> nn.Linear:
    functional = require("bitsandbytes", extra="qlora", purpose="The strategy 'qlora' on CUDA").functional
    return _linear(functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float(), layer.bias)
