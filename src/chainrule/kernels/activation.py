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


def gated_silu(both: torch.Tensor) -> torch.Tensor:
    """gate · σ(gate) · values: Shazeer (2020), GLU Variants Improve Transformer, equation 6, without its products.

    Args:
        both: (…, 2 · columns): gates, then values, side by side as one product makes them.

    Returns:
        (…, columns).
    """
    if native.usable(both):
        result: torch.Tensor = _GatedSilu.apply(both)  # type: ignore[no-untyped-call]
        return result
    gate, values = both.chunk(2, -1)
    return functional.silu(gate) * values


def gelu_gradient(
    above: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of `bias_gelu` by compiled kernels, of its two arguments."""
    result = torch.empty_like(values)
    dbias = None if bias is None else torch.zeros_like(bias)
    half = native.is_half(values)
    native.call("gelu_backward", half, above.contiguous(), values, bias, result, dbias, *_rows(values))
    return result, dbias


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
        return gelu_gradient(gradients[0], *context.saved_tensors)


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, both: torch.Tensor) -> torch.Tensor:
        both = both.contiguous()
        context.save_for_backward(both)
        rows, width = _rows(both)
        result = both.new_empty(*both.shape[:-1], width // 2)
        gate, values = _halves(both)
        native.call("gated_forward", native.is_half(both), gate, values, result, rows, width // 2, width)
        return result

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (both,) = context.saved_tensors
        rows, width = _rows(both)
        result = torch.empty_like(both)
        above = gradients[0].contiguous()
        places = *_halves(both), *_halves(result)
        native.call("gated_backward", native.is_half(both), above, *places, rows, width // 2, width)
        return result


def _halves(both: torch.Tensor) -> tuple[int, int]:
    """Where the gates and the values of the first row begin in memory."""
    start = both.data_ptr()
    return start, start + both.shape[-1] // 2 * both.element_size()


def _rows(values: torch.Tensor) -> tuple[int, int]:
    columns = values.shape[-1]
    return values.numel() // columns, columns
