"""Activations with the bias before them, or the gate beside them, read and written once."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from chainrule.kernels import native


def bias_gelu(values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x · Φ(x) of x = values + bias: Hendrycks and Gimpel (2016), Gaussian Error Linear Units, section 2.

    Args:
        values: (…, columns).
        bias: (columns,) float32, or None.
    """
    if native.usable(values) and (bias is None or bias.dtype == torch.float32):
        result: torch.Tensor = _BiasGelu.apply(values, bias)  # type: ignore[no-untyped-call]
        return result
    return functional.gelu(values if bias is None else values + bias.to(values.dtype))


def gated_silu(gate: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """gate · σ(gate) · values: Shazeer (2020), GLU Variants Improve Transformer, equation 6, without its products.

    Args:
        gate: any shape, and `values` of the same shape and format.
    """
    if native.usable(gate) and values.dtype == gate.dtype:
        result: torch.Tensor = _GatedSilu.apply(gate, values)  # type: ignore[no-untyped-call]
        return result
    return functional.silu(gate) * values


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        values = values.contiguous()
        context.save_for_backward(values, bias)
        result = torch.empty_like(values)
        native.call("gelu_forward", native.is_half(values), values, bias, result, *_rows(values))
        return result

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        values, bias = context.saved_tensors
        result = torch.empty_like(values)
        dbias = None if bias is None else torch.zeros_like(bias)
        above = gradients[0].contiguous()
        native.call("gelu_backward", native.is_half(values), above, values, bias, result, dbias, *_rows(values))
        return result, dbias


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, gate: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        gate, values = gate.contiguous(), values.contiguous()
        context.save_for_backward(gate, values)
        result = torch.empty_like(values)
        native.call("gated_forward", native.is_half(gate), gate, values, result, gate.numel())
        return result

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, values = context.saved_tensors
        dgate, dvalues = torch.empty_like(gate), torch.empty_like(values)
        above = gradients[0].contiguous()
        native.call("gated_backward", native.is_half(gate), above, gate, values, dgate, dvalues, gate.numel())
        return dgate, dvalues


def _rows(values: torch.Tensor) -> tuple[int, int]:
    columns = values.shape[-1]
    return values.numel() // columns, columns
