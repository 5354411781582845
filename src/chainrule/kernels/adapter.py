"""Linear layers of one input with their low-rank adapters: Hu et al. (2021), LoRA, equation 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.kernels.linear import multiply, multiply_across


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
        first = torch.cat(firsts).to(compute.dtype)
        scaled = [part * scale for part, scale in zip(seconds, scales, strict=True)]
        second = torch.block_diag(*scaled).to(compute.dtype)  # type: ignore[no-untyped-call]
        flat = values.reshape(-1, values.shape[-1])
        inner = torch.mm(flat, first.t())
        result = multiply(flat, compute, bias)
        result.addmm_(inner, second.t())
        context.save_for_backward(flat, compute, first, second, inner)
        context.scales, context.sizes = scales, [part.shape for part in seconds]
        return result.view(*values.shape[:-1], len(compute))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, compute, first, second, inner = context.saved_tensors
        above = gradients[0].reshape(-1, gradients[0].shape[-1])
        middle = torch.mm(above, second)
        dvalues = None
        if context.needs_input_grad[0]:
            dvalues = multiply_across(above, compute).addmm_(middle, first).view(*gradients[0].shape[:-1], -1)
        dfirsts = torch.split(torch.mm(middle.t(), flat).float(), [rank for _, rank in context.sizes])
        whole = torch.mm(above.t(), inner).float()
        dseconds, row, column = [], 0, 0
        for scale, (rows, columns) in zip(context.scales, context.sizes, strict=True):
            dseconds.append(whole[row : row + rows, column : column + columns] * scale)
            row, column = row + rows, column + columns
        return dvalues, None, None, None, *dfirsts, *dseconds
