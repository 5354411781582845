"""Layer norm with what comes before it in a transformer: bias, dropout and the residual sum, read and written once."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from chainrule.kernels import native
from chainrule.kernels.dropout import draw_key, drop_levels
from chainrule.kernels.dropout import dropout as drop


def norm(values: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Layer norm over the last dimension: Ba et al. (2016), Layer Normalization, equation 4.

    Args:
        values: (…, columns).
        weight: (columns,) float32, and `shift` likewise or None.
    """
    return residual_norm(values, None, None, weight, shift, epsilon, 0.0)


def root_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """values / √(mean(values²) + epsilon) · weight: Zhang and Sennrich (2019), Root Mean Square Layer Normalization."""
    if native.usable(values) and weight.dtype == torch.float32:
        result: torch.Tensor = _ResidualNorm.apply(  # type: ignore[no-untyped-call]
            values, None, None, weight, None, (epsilon, 0, 1, torch.is_grad_enabled())
        )
        return result
    return functional.rms_norm(values, weight.shape, weight.to(values.dtype), epsilon)


def residual_norm(
    values: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    epsilon: float,
    dropout: float,
) -> torch.Tensor:
    """Layer norm of dropout(values + bias) + residual.

    Args:
        values: (…, columns).
        bias: (columns,) or None.
        residual: of the shape and format of `values`, or None.
        weight: (columns,) float32, and `shift` likewise or None.
        dropout: probability, 0 for none.

    Returns:
        Of the shape and format of `values`.
    """
    if native.usable(values) and weight.dtype == torch.float32:
        level = drop_levels(dropout)
        result: torch.Tensor = _ResidualNorm.apply(  # type: ignore[no-untyped-call]
            values, bias, residual, weight, shift, (epsilon, level, 0, torch.is_grad_enabled())
        )
        return result
    if bias is not None:
        values = values + bias.to(values.dtype)
    values = drop(values, dropout)
    if residual is not None:
        values = values + residual
    with torch.autocast(values.device.type, enabled=False):
        wide = functional.layer_norm(
            values.to(weight.dtype) if values.dtype == torch.bfloat16 else values, weight.shape, weight, shift, epsilon
        )
    return wide.to(values.dtype)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        shift: torch.Tensor | None,
        options: tuple[float, int, int, bool],
    ) -> torch.Tensor:
        epsilon, level, root, backward_follows = options
        columns = values.shape[-1]
        rows = values.numel() // columns
        values = values.contiguous()
        residual = None if residual is None else residual.contiguous()
        drop = (level, *(draw_key() if level else (0, 0)))
        plain = bias is None and residual is None and not level
        total = values if plain or not backward_follows else torch.empty_like(values)
        result = torch.empty_like(values)
        mean, deviation = torch.empty(2, rows).unbind()
        native.call(
            "norm_forward", native.is_half(values), values, bias, residual, weight, shift, result,
            None if total is values else total, mean, deviation, rows, columns, epsilon, root, *drop,
        )  # fmt: skip
        context.save_for_backward(total, mean, deviation, weight)
        context.drop, context.root = drop, root
        context.has = (bias is not None, residual is not None, shift is not None)
        return result

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, mean, deviation, weight = context.saved_tensors
        gradient = gradients[0].contiguous()
        columns = total.shape[-1]
        rows = total.numel() // columns
        has_bias, has_residual, has_shift = context.has
        below = torch.empty_like(total)
        dvalues = torch.empty_like(total) if context.drop[0] else below
        sums = torch.zeros(3, columns)
        native.call(
            "norm_backward", native.is_half(total), gradient, total, mean, deviation, weight, below, dvalues,
            sums[0], sums[1] if has_shift else None, sums[2] if has_bias else None, rows, columns, context.root,
            *context.drop,
        )  # fmt: skip
        return (
            dvalues,
            sums[2] if has_bias else None,
            below if has_residual else None,
            sums[0],
            sums[1] if has_shift else None,
            None,
        )
