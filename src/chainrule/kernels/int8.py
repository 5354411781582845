"""A frozen linear layer whose weight is held in int8, one scale for each output.

Dettmers et al. (2022), LLM.int8(), section 2: symmetric rounding by the largest absolute value, here by rows, without
a part for outliers. Integers of eight bits are exact in bfloat16, and the scales act on the sums, so that a product
loses nothing but what the rounding took.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight (outputs, inputs).

    Returns:
        (outputs, inputs) int8 and (outputs,) float32: the weight is about their product, within half a scale.
    """
    scales = weight.detach().float().abs().amax(1).div(127).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(weight.detach().float() / scales[:, None]).to(torch.int8), scales


def from_int8(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight that is computed with, in float32."""
    return weight.float() * scales[:, None]


def int8_linear(
    values: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """values · (scales · weight)ᵀ + bias, in the number format of `values`, or of autocast on the CPU.

    The weight is widened for each product and never kept: backward widens it anew.

    Args:
        values: (…, inputs).
        weight: (outputs, inputs) int8. Gets no gradient.
        scales: (outputs,) float32.
        bias: (outputs,), or None. Gets no gradient.
    """
    if values.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        values = values.to(torch.get_autocast_dtype("cpu"))
    result: torch.Tensor = _Int8Linear.apply(values, weight, scales, bias)  # type: ignore[no-untyped-call]
    return result


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, values: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        context.save_for_backward(weight, scales)
        flat = values.reshape(-1, values.shape[-1])
        result = functional.linear(flat, weight.to(values.dtype)) * scales
        if bias is not None:
            result += bias
        return result.to(values.dtype).view(*values.shape[:-1], len(weight))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scales = context.saved_tensors
        above = gradients[0].reshape(-1, gradients[0].shape[-1])
        scaled = (above * scales).to(above.dtype)
        return torch.mm(scaled, weight.to(above.dtype)).view(*gradients[0].shape[:-1], -1), None, None, None
