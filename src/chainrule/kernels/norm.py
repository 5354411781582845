"""Layer norm with what comes before it in a transformer: bias, dropout and the residual sum, read and written once."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Normed:
    """What a layer norm was made with, for its gradient.

    Attributes:
        total: (…, columns) what the statistics are of.
        mean, deviation: (rows,), of the deviation one over it.
        drop: the dropout.
        has: whether it had a bias, a residual and a shift.
    """

    total: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    drop: tuple[int, int, int]
    root: int
    has: tuple[bool, bool, bool]


@dataclass(frozen=True)
class NormGradients:
    """Of the arguments of `residual_norm`, None where there is none."""

    values: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor
    weight: torch.Tensor
    shift: torch.Tensor | None


def norm_forward(
    values: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    options: tuple[float, int, int, bool],
) -> tuple[torch.Tensor, Normed]:
    """`residual_norm` by compiled kernels, and what its gradient is made from.

    Args:
        options: epsilon, level of the dropout, 1 for the root-mean-square norm, whether a backward follows.
    """
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
    has = (bias is not None, residual is not None, shift is not None)
    return result, Normed(total, mean, deviation, drop, root, has)


def norm_gradients(above: torch.Tensor, normed: Normed, weight: torch.Tensor) -> NormGradients:
    """From the gradient of what `norm_forward` gave."""
    total, drop = normed.total, normed.drop
    columns = total.shape[-1]
    has_bias, _, has_shift = normed.has
    below = torch.empty_like(total)
    dvalues = torch.empty_like(total) if drop[0] else below
    sums = torch.zeros(3, columns)
    dbias, dshift = sums[2] if has_bias else None, sums[1] if has_shift else None
    native.call(
        "norm_backward", native.is_half(total), above.contiguous(), total, normed.mean, normed.deviation, weight, below,
        dvalues, sums[0], dshift, dbias, total.numel() // columns, columns, normed.root, *drop,
    )  # fmt: skip
    return NormGradients(dvalues, dbias, below, sums[0], dshift)


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
        result, normed = norm_forward(values, bias, residual, weight, shift, options)
        context.save_for_backward(normed.total, normed.mean, normed.deviation, weight)
        context.rest = normed.drop, normed.root, normed.has
        return result

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, weight = context.saved_tensors
        normed = Normed(*tensors, *context.rest)
        found = norm_gradients(gradients[0], normed, weight)
        residual = found.residual if normed.has[1] else None
        return found.values, found.bias, residual, found.weight, found.shift, None
