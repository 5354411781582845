"""Linear layers of one input with their low-rank adapters: Hu et al. (2021), LoRA, equation 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.kernels.linear import multiply, multiply_across, weight_gradient

TILE_COLUMNS = 32


@dataclass(frozen=True)
class LowRank:
    """The adapter of one layer: the update scale · second · first of its weight.

    Attributes:
        first: (rank, inputs) float32.
        second: (outputs, rank) float32.
    """

    first: torch.Tensor
    second: torch.Tensor
    scale: float


def adapted_linears(
    values: torch.Tensor, compute: torch.Tensor, bias: torch.Tensor | None, adapters: Sequence[LowRank]
) -> torch.Tensor:
    """values · (W + scale · second · first)ᵀ + bias in bfloat16, W frozen.

    The adapters of several layers act as one: their `first` one below the other, their `second` as the blocks of a
    block-diagonal matrix.

    Args:
        values: (…, inputs) bfloat16.
        compute: (sum of outputs, inputs) bfloat16: W of the layers, one below the other. Gets no gradient.
        bias: (sum of outputs,), or None. Gets no gradient.

    Returns:
        (…, sum of outputs) bfloat16.
    """
    tensors = [*(adapter.first for adapter in adapters), *(adapter.second for adapter in adapters)]
    scales = [adapter.scale for adapter in adapters]
    result: torch.Tensor = _AdaptedLinears.apply(values, compute, bias, scales, *tensors)  # type: ignore[no-untyped-call]
    return result


class _AdaptedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        compute: torch.Tensor,
        bias: torch.Tensor | None,
        scales: list[float],
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        firsts, seconds = adapters[: len(scales)], adapters[len(scales) :]
        first, second = _stacked(firsts, seconds, scales, compute.dtype)
        flat = values.reshape(-1, values.shape[-1])
        inner = multiply(flat, first)
        result = multiply(flat, compute, bias, (inner, second))
        context.save_for_backward(flat, compute, first, second, inner)
        context.scales, context.sizes = scales, [part.shape for part in seconds]
        return result.view(*values.shape[:-1], len(compute))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, compute, first, second, inner = context.saved_tensors
        above = gradients[0].reshape(-1, gradients[0].shape[-1])
        middle = multiply_across(above, second)
        dvalues = None
        if context.needs_input_grad[0]:
            dvalues = multiply_across(above, compute, more=(middle, first)).view(*gradients[0].shape[:-1], -1)
        of_first, _ = weight_gradient(middle, flat, sums=False)
        of_second, _ = weight_gradient(above, inner, sums=False)
        dfirsts, dseconds, row, column = [], [], 0, 0
        for scale, (rows, columns) in zip(context.scales, context.sizes, strict=True):
            dfirsts.append(of_first[column : column + columns].float())
            dseconds.append(of_second[row : row + rows, column : column + columns].float() * scale)
            row, column = row + rows, column + columns
        return dvalues, None, None, None, *dfirsts, *dseconds


def _stacked(
    firsts: Sequence[torch.Tensor], seconds: Sequence[torch.Tensor], scales: Sequence[float], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `first` of all adapters one below the other, their scaled `second` as blocks beside each other.

    Where their ranks make no whole tiles, zeros do.
    """
    ranks = [second.shape[1] for second in seconds]
    whole = -(-sum(ranks) // TILE_COLUMNS) * TILE_COLUMNS
    first = firsts[0].new_zeros(whole, firsts[0].shape[1], dtype=dtype)
    second = seconds[0].new_zeros(sum(map(len, seconds)), whole, dtype=dtype)
    row = column = 0
    for down, up, scale, rank in zip(firsts, seconds, scales, ranks, strict=True):
        first[column : column + rank] = down
        second[row : row + len(up), column : column + rank] = up * scale
        row, column = row + len(up), column + rank
    return first, second
