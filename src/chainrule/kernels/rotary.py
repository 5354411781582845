"""Attention with rotary positions, of queries, keys and values that one product has made.

Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding, equation 34, with the pairs of
dimensions (i, i + size/2) as Llama and Qwen have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from chainrule.kernels import native
from chainrule.kernels.attention import Options, attend, attend_backward, attention, byte_mask, options_of


@dataclass(frozen=True)
class Heads:
    """How a projection is divided.

    Attributes:
        count: heads of the queries.
        keys: heads of the keys, and of the values; `count` is a multiple of it.
        size: of one head, even.
    """

    count: int
    keys: int
    size: int


def rotary_attention(
    projected: torch.Tensor,
    heads: Heads,
    table: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
    causal: bool,
) -> torch.Tensor:
    """`attention` after the queries and keys were rotated by their positions.

    Args:
        projected: (batch, length, (count + 2 · keys) · size): queries, then keys, then values, each head by head.
        table: cosines and sines (batch or 1, length, size) of each token's position.
        mask, scaling, dropout, causal: as in `attention`.

    Returns:
        (batch, length, count · size).
    """
    bytes_mask = byte_mask(mask)
    batch = projected.shape[0]
    if native.usable(projected) and (mask is None or bytes_mask is not None):
        cos, sin = (part.float().contiguous() for part in table)
        options = options_of(batch, heads.count, scaling, dropout, causal)
        result: torch.Tensor = _RotaryAttention.apply(  # type: ignore[no-untyped-call]
            projected, cos, sin, bytes_mask, heads, options
        )
        return result
    parts = projected.view(*projected.shape[:2], -1, heads.size).transpose(1, 2)
    query, key, value = torch.split(parts, [heads.count, heads.keys, heads.keys], 1)
    cos, sin = (part[:, None].to(projected.dtype) for part in table)
    query, key = (part * cos + _turned(part) * sin for part in (query, key))
    output = attention(query, key, value, mask, scaling, dropout, causal)
    return output.transpose(1, 2).flatten(2)


def _turned(values: torch.Tensor) -> torch.Tensor:
    first, second = values.chunk(2, -1)
    return torch.cat((-second, first), -1)


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        projected: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        heads: Heads,
        options: Options,
    ) -> torch.Tensor:
        projected = projected.contiguous()
        batch, length = projected.shape[:2]
        groups = batch * heads.keys
        query = projected.new_empty(groups, heads.count // heads.keys * length, heads.size)
        key, value = projected.new_empty(2, groups, length, heads.size).unbind()
        sizes = (0 if len(cos) == 1 else length * heads.size, batch, length, heads.count, heads.keys, heads.size)
        half = native.is_half(projected)
        native.call("rotate_forward", half, projected, query, key, value, cos, sin, *sizes)
        output, weights = attend(query, key, value, mask, options)
        context.save_for_backward(query, key, value, weights, cos, sin)
        context.options, context.sizes = options, sizes
        return output.view(batch, heads.count, length, heads.size).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *saved, cos, sin = context.saved_tensors
        _, batch, length, count, keys, size = context.sizes
        above = gradients[0].reshape(batch, length, count, size).transpose(1, 2).reshape(saved[0].shape)
        parts = attend_backward(above, tuple(saved), None, context.options)
        result = above.new_empty(batch, length, (count + 2 * keys) * size)
        native.call("rotate_backward", native.is_half(above), result, *parts, cos, sin, *context.sizes)
        return result, None, None, None, None, None
