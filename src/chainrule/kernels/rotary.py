"""Attention with rotary positions, of queries, keys and values that one product has made.

Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding, equation 34, with the pairs of
dimensions (i, i + size/2) as Llama and Qwen have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from chainrule.kernels import native
from chainrule.kernels.attention import attend, attend_backward, attention
from chainrule.kernels.attention_options import Options, byte_mask, options_of
from chainrule.kernels.tiled_attention import attend_backward_on_tiles, attend_on_tiles, tiled

BLOCK = 128  # queries that are worked through at once, about


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


@dataclass(frozen=True)
class Sight:
    """Which keys a query may see.

    Attributes:
        mask, causal: as in `attention`.
        starts: where rows begin that stand side by side (batch of one), none of which sees another. `mask` says the
            same, and is read only where it cannot be done without it.
    """

    mask: torch.Tensor | None
    causal: bool
    starts: tuple[int, ...] = (0,)


def rotary_attention(
    projected: torch.Tensor,
    heads: Heads,
    table: tuple[torch.Tensor, torch.Tensor],
    sight: Sight,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """`attention` after the queries and keys were rotated by their positions.

    Args:
        projected: (batch, length, (count + 2 · keys) · size): queries, then keys, then values, each head by head.
        table: cosines and sines (batch or 1, length, size) of each token's position.
        scaling, dropout: as in `attention`.

    Returns:
        (batch, length, count · size).
    """
    mask, causal = sight.mask, sight.causal
    bytes_mask = byte_mask(mask)
    batch = projected.shape[0]
    if native.usable(projected) and (mask is None or bytes_mask is not None):
        cos, sin = (part.float().contiguous() for part in table)
        options = options_of(batch, heads.count, scaling, dropout, causal)
        bounds = (*sight.starts, projected.shape[1])
        if len(sight.starts) > 1:
            bytes_mask = None
        example = projected[:, None, :, : heads.size]
        kind: Any = _TiledRotaryAttention if tiled(example, example) else _RotaryAttention
        result: torch.Tensor = kind.apply(projected, cos, sin, bytes_mask, heads, (options, bounds))
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
        plan: tuple[Options, tuple[int, ...]],
    ) -> torch.Tensor:
        options, bounds = plan
        blocks = _blocks(bounds, options.causal)
        rotated, sizes = _rotated(projected, cos, sin, heads)
        query, key, value = rotated
        groups, shared, length = query.shape[:3]
        outputs, kept = [], []
        for number, (rows, keys) in enumerate(blocks):
            seen = key[:, keys], value[:, keys]
            part = query[:, :, rows].reshape(groups, -1, heads.size)
            output, weights = attend(part, *seen, _cut(mask, rows, seen[0].shape[1]), _of_block(options, number))
            outputs.append(output.view(groups, shared, -1, heads.size))
            kept += [part, weights]
        context.save_for_backward(key, value, cos, sin, *kept)
        context.options, context.sizes, context.blocks = options, sizes, blocks
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return whole.view(len(projected), heads.count, length, heads.size).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        key, value, cos, sin, *kept = context.saved_tensors
        _, batch, length, count, keys, size = context.sizes
        above = gradients[0].reshape(batch, length, count, size).transpose(1, 2)
        above = above.reshape(batch * keys, count // keys, length, size)
        dquery = above.new_empty(above.shape)
        dkey, dvalue = torch.zeros_like(key), torch.zeros_like(value)
        for number, (rows, seen) in enumerate(context.blocks):
            part, weights = kept[2 * number : 2 * number + 2]
            saved, options = (part, key[:, seen], value[:, seen], weights), _of_block(context.options, number)
            first, second, third = attend_backward(above[:, :, rows].reshape(part.shape), saved, None, options)
            dquery[:, :, rows] = first.view(*above.shape[:2], -1, size)
            dkey[:, seen] += second
            dvalue[:, seen] += third
        return _rotated_back((dquery, dkey, dvalue), cos, sin, context.sizes), None, None, None, None, None


class _TiledRotaryAttention(torch.autograd.Function):
    """The same on tiles, where rows that stand side by side are one piece each."""

    @staticmethod
    def forward(
        context: Any,
        projected: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        heads: Heads,
        plan: tuple[Options, tuple[int, ...]],
    ) -> torch.Tensor:
        options, bounds = plan
        rotated, sizes = _rotated(projected, cos, sin, heads)
        batch, length = projected.shape[:2]
        parts = [part.view(batch, -1, length, heads.size) for part in rotated]
        output = projected.new_empty(batch, length, heads.count, heads.size)
        softmaxes = []
        for number, rows in enumerate(slice(*ends) for ends in pairwise(bounds)):
            pieces, into = [part[:, :, rows] for part in parts], output[:, rows].transpose(1, 2)
            softmaxes.append(attend_on_tiles(pieces, mask, into, _of_block(options, number)))
        context.save_for_backward(*parts, cos, sin, mask, *softmaxes)
        context.options, context.sizes, context.bounds = options, sizes, bounds
        return output.flatten(2)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *parts, cos, sin, mask = context.saved_tensors[:6]
        _, batch, length, count, _, size = context.sizes
        above = gradients[0].reshape(batch, length, count, size)
        into = [torch.empty_like(part) for part in parts]
        for number, rows in enumerate(slice(*ends) for ends in pairwise(context.bounds)):
            pieces, places = ([part[:, :, rows] for part in whole] for whole in (parts, into))
            softmaxes, options = context.saved_tensors[6 + number], _of_block(context.options, number)
            attend_backward_on_tiles(above[:, rows].transpose(1, 2), pieces, mask, softmaxes, options, places)
        return _rotated_back(into, cos, sin, context.sizes), None, None, None, None, None


def _rotated(
    projected: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: Heads
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], tuple[int, ...]]:
    """Query (groups, heads of each, length, size), key and value (groups, length, size), and the kernel's sizes."""
    projected = projected.contiguous()
    batch, length = projected.shape[:2]
    groups, shared = batch * heads.keys, heads.count // heads.keys
    query = projected.new_empty(groups, shared, length, heads.size)
    key, value = projected.new_empty(2, groups, length, heads.size).unbind()
    sizes = (0 if len(cos) == 1 else length * heads.size, batch, length, heads.count, heads.keys, heads.size)
    native.call("rotate_forward", native.is_half(projected), projected, query, key, value, cos, sin, *sizes)
    return (query, key, value), sizes


def _rotated_back(
    gradients: Sequence[torch.Tensor], cos: torch.Tensor, sin: torch.Tensor, sizes: tuple[int, ...]
) -> torch.Tensor:
    """The gradient of what `_rotated` was given."""
    _, batch, length, count, keys, size = sizes
    result = gradients[0].new_empty(batch, length, (count + 2 * keys) * size)
    native.call("rotate_backward", native.is_half(result), result, *gradients, cos, sin, *sizes)
    return result


def _blocks(bounds: tuple[int, ...], causal: bool) -> list[tuple[slice, slice]]:
    """The queries in pieces, and the keys that each may see, so that what no query of a piece sees is never computed.

    Args:
        bounds: where rows begin that stand side by side, and the end of the last.
    """
    blocks = []
    for first, last in pairwise(bounds):
        size = -(-(last - first) // (max(1, (last - first) // BLOCK) if causal else 1))
        for start in range(first, last, size):
            stop = min(start + size, last)
            blocks.append((slice(start, stop), slice(first, stop if causal else last)))
    return blocks


def _of_block(options: Options, number: int) -> Options:
    """With a mask of dropout of its own."""
    level, first, second = options.drop
    return replace(options, drop=(level, first, (second + number) % 2**32))


def _cut(mask: torch.Tensor | None, rows: slice, keys: int) -> torch.Tensor | None:
    """The part of `byte_mask` for some queries and the first keys."""
    if mask is None or (mask.shape[1] in (1, rows.stop - rows.start) and mask.shape[2] == keys):
        return mask
    return (mask if mask.shape[1] == 1 else mask[:, rows])[:, :, :keys].contiguous()
