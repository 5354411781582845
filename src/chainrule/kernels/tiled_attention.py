"""Attention on the tile registers of a processor (AMX), in bfloat16: neither scores nor softmax are kept."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from chainrule.kernels import native
from chainrule.kernels.attention_options import Options, heads_of

TILED_SIZE, TILED_LENGTH = 128, 2048  # of heads and rows that are done on tiles where there are any


def tiled(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether this attention is made on tiles: (batch, heads, length, size) each."""
    fits = query.shape[-1] % 32 == 0 and query.shape[-1] <= TILED_SIZE and key.shape[2] <= TILED_LENGTH
    return query.dtype == torch.bfloat16 and fits and native.tiles()


def attend_on_tiles(
    parts: Sequence[torch.Tensor], mask: torch.Tensor | None, output: torch.Tensor, options: Options
) -> torch.Tensor | None:
    """Attention into `output`.

    Args:
        parts: query (batch, heads, queries, size), key and value (batch, key heads, keys, size); views of any strides,
            those of keys and values the same, whose last dimension lies side by side.
        mask: of `byte_mask`.
        output: (batch, heads, queries, size), likewise.

    Returns:
        What the softmax of every query was made with, for `attend_backward_on_tiles`.
    """
    query, key, value = parts
    softmaxes = torch.empty(*query.shape[:3], 2) if options.keep else None
    sizes = _sizes_on_tiles(query, key, mask, options, (query, key, output, query, key))
    native.call(
        "tiled_forward", *_places(query, key, value, output), softmaxes, sizes, mask, options.scaling, *options.drop
    )
    return softmaxes


def attend_backward_on_tiles(
    above: torch.Tensor,
    parts: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    softmaxes: torch.Tensor,
    options: Options,
    into: Sequence[torch.Tensor],
) -> None:
    """The gradients of query, key and value, into views as `parts` are."""
    query, key, value = parts
    sizes = _sizes_on_tiles(query, key, mask, options, (query, key, above, into[0], into[1]))
    places = _places(above, query, key, value, *into)
    native.call("tiled_backward", *places, softmaxes, sizes, mask, options.scaling, *options.drop)


def _places(*parts: torch.Tensor) -> list[int]:
    if any(part.stride(-1) != 1 for part in parts):
        raise ValueError("a kernel reads vectors whose elements lie side by side")
    return [part.data_ptr() for part in parts]


def _sizes_on_tiles(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, options: Options, parts: Sequence[torch.Tensor]
) -> Any:
    """In the order that the kernel reads."""
    batch, heads, queries, size = query.shape
    strides = (0, 0)
    if mask is not None:
        rows, width = mask.shape[1], mask.shape[2]
        strides = (rows * width if mask.shape[0] > 1 else 0, width if rows > 1 else 0)
    told = [batch, key.shape[1], heads // key.shape[1], queries, key.shape[2], size, *strides, int(options.causal)]
    told += [stride for part in parts for stride in part.stride()[:3]]
    return (ctypes.c_int64 * len(told))(*told)


class TiledAttention(torch.autograd.Function):
    """`attention` on tiles."""

    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        options: Options,
    ) -> torch.Tensor:
        parts = [part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)]
        if parts[1].stride() != parts[2].stride():
            parts[1:] = [part.contiguous() for part in parts[1:]]
        batch, heads, queries, size = query.shape
        output = query.new_empty(batch, queries, heads, size).transpose(1, 2)
        context.save_for_backward(*parts, mask, attend_on_tiles(parts, mask, output, options))
        context.options = options
        return output

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *parts, mask, softmaxes = context.saved_tensors
        above = gradients[0] if gradients[0].stride(-1) == 1 else gradients[0].contiguous()
        into = [part.new_empty(part.transpose(1, 2).shape).transpose(1, 2) for part in parts]
        attend_backward_on_tiles(above, parts, mask, softmaxes, context.options, into)
        return *into, None, None


class TiledSelfAttention(torch.autograd.Function):
    """`self_attention` on tiles."""

    @staticmethod
    def forward(context: Any, projected: torch.Tensor, mask: torch.Tensor | None, options: Options) -> torch.Tensor:
        batch, length, width = projected.shape
        projected = projected.contiguous()
        output = projected.new_empty(batch, length, options.heads, width // 3 // options.heads)
        parts = heads_of(projected, options.heads)
        softmaxes = attend_on_tiles(parts, mask, output.transpose(1, 2), options)
        context.save_for_backward(projected, mask, softmaxes)
        context.options = options
        return output.flatten(2)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        projected, mask, softmaxes = context.saved_tensors
        options, result = context.options, torch.empty_like(projected)
        above = gradients[0].contiguous().view(*projected.shape[:2], options.heads, -1).transpose(1, 2)
        parts, into = (heads_of(whole, options.heads) for whole in (projected, result))
        attend_backward_on_tiles(above, parts, mask, softmaxes, options, into)
        return result, None, None
