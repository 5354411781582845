"""Attention written out as two matrix products and a softmax.

On CPUs the backward of torch's fused attention is several times slower than this in bfloat16 at short lengths, and
with dropout torch leaves its fused path anyway (LOG.md, 2026-11-22).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.kernels import native
from chainrule.kernels.dropout import draw_key, drop_levels
from chainrule.kernels.dropout import dropout as drop

# Tokens times head size from which the matrix products of torch are faster: with a backward, and without one.
HEAD_BY_HEAD_TO = (1024, 2048)
TILED_SIZE, TILED_LENGTH = 128, 2048  # of heads and rows that are done on tiles where there are any


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
    causal: bool = False,
) -> torch.Tensor:
    """softmax(query · keyᵀ · scaling + mask) · value, with dropout on the softmax.

    Vaswani et al. (2017), Attention Is All You Need, equation 1. A row whose keys are all masked gives finite values.

    Args:
        query: (batch, heads, queries, size).
        key: (batch, key heads, keys, size), and `value` likewise. Each key head serves as many neighbouring heads:
            Ainslie et al. (2023), GQA.
        mask: broadcasts to (batch, heads, queries, keys): boolean, true where a key may be seen, or numbers that are
            added; None where every key may be seen.
        scaling: usually size ** −0.5.
        dropout: probability, 0 for none.
        causal: query i sees the keys up to i + keys − queries only.

    Returns:
        (batch, heads, queries, size).
    """
    bytes_mask = byte_mask(mask)
    if native.usable(query) and (mask is None or bytes_mask is not None):
        kind = TiledAttention if tiled(query, key) else _Attention
        result: torch.Tensor = kind.apply(  # type: ignore[no-untyped-call]
            query, key, value, bytes_mask, options_of(query.shape[0], query.shape[1], scaling, dropout, causal)
        )
        return result
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scores = torch.matmul(query * scaling, key.transpose(-2, -1))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(later.triu(1 + key.shape[-2] - query.shape[-2]), torch.finfo(scores.dtype).min)
    weights = drop(torch.softmax(scores, dim=-1), dropout)
    return torch.matmul(weights.to(value.dtype), value)


def byte_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(batch or 1, queries or 1, keys) bytes for a boolean mask that is the same for every head, else None."""
    if mask is None or mask.dtype != torch.bool or mask.ndim != 4:
        return None
    if mask.shape[1] > 1 and mask.stride(1) != 0:
        return None
    mask = mask[:, 0]
    if mask.stride(1) == 0:  # expanded over the queries
        mask = mask[:, :1]
    return mask.contiguous().view(torch.uint8)


def self_attention(
    projected: torch.Tensor, heads: int, mask: torch.Tensor | None, scaling: float, dropout: float
) -> torch.Tensor:
    """`attention` of queries, keys and values that one product has made.

    Args:
        projected: (batch, length, 3 · heads · size): queries, then keys, then values, each head by head.
        mask: as in `attention`.

    Returns:
        (batch, length, heads · size).
    """
    batch, length, width = projected.shape
    bytes_mask = byte_mask(mask)
    if native.usable(projected) and (mask is None or bytes_mask is not None):
        by_keys = bytes_mask is None or bytes_mask.shape[1] == 1
        short = length * width // heads // 3 <= HEAD_BY_HEAD_TO[not torch.is_grad_enabled()]
        kind: Any = _HeadByHead if by_keys and short else _SelfAttention
        if tiled(*heads_of(projected, heads)[:2]):
            kind = _TiledSelfAttention
        result: torch.Tensor = kind.apply(projected, bytes_mask, options_of(batch, heads, scaling, dropout, False))
        return result
    query, key, value = heads_of(projected, heads)
    output = attention(query, key, value, mask, scaling, dropout)
    return output.transpose(1, 2).reshape(batch, length, width // 3)


def heads_of(projected: torch.Tensor, heads: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, each (batch, heads, length, size), as views of (batch, length, 3 · heads · size)."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()


@dataclass(frozen=True)
class Options:
    """What one attention is made with beside its tensors."""

    batch: int
    heads: int
    scaling: float
    drop: tuple[int, int, int]
    causal: bool
    keep: bool  # for a backward


def options_of(batch: int, heads: int, scaling: float, dropout: float, causal: bool) -> Options:
    """With the key of this attention's dropout drawn."""
    level = drop_levels(dropout)
    return Options(batch, heads, scaling, (level, *(draw_key() if level else (0, 0))), causal, torch.is_grad_enabled())


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the softmax before dropout.

    Args:
        query: (batch · key heads, heads per key head · queries, size).
        key: (batch · key heads, keys, size), and `value` likewise.
        mask: of `byte_mask`.
    """
    scores = torch.bmm(query, key.transpose(1, 2))
    dropped = torch.empty_like(scores) if options.drop[0] else None
    strides = (0, 0)
    if mask is not None:
        rows, width = mask.shape[1], mask.shape[2]
        strides = (rows * width if mask.shape[0] > 1 else 0, width if rows > 1 else 0)
    sizes = (options.batch, options.heads, query.shape[0] * query.shape[1] // (options.batch * options.heads))
    native.call(
        "softmax_forward", native.is_half(scores), scores, mask, *strides, scores, dropped, *sizes, key.shape[1],
        options.scaling, options.causal, *options.drop,
    )  # fmt: skip
    return torch.bmm(scores if dropped is None else dropped, value), scores


def attend_backward(
    gradient: torch.Tensor, saved: tuple[torch.Tensor, ...], out: torch.Tensor | None, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value; written to out[0], out[1], out[2] where it is given.

    Args:
        gradient: of the output.
        saved: query, key, value and the softmax.
    """
    query, key, value, weights = saved
    inner = torch.bmm(gradient, value.transpose(1, 2))
    dropped = torch.empty_like(weights) if options.drop[0] else None
    rows, keys = weights.shape[0] * weights.shape[1], weights.shape[2]
    half = native.is_half(weights)
    native.call("softmax_backward", half, weights, inner, dropped, rows, keys, options.scaling, *options.drop)
    places = (None, None, None) if out is None else out.unbind()
    dquery = torch.bmm(inner, key, out=places[0])
    dkey = torch.bmm(inner.transpose(1, 2), query, out=places[1])
    dvalue = torch.bmm((weights if dropped is None else dropped).transpose(1, 2), gradient, out=places[2])
    return dquery, dkey, dvalue


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


class _TiledSelfAttention(torch.autograd.Function):
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


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        options: Options,
    ) -> torch.Tensor:
        context.shapes = query.shape, key.shape
        batch, heads = key.shape[:2]
        query = query.reshape(batch * heads, -1, query.shape[3])
        key, value = (part.reshape(batch * heads, -1, part.shape[3]) for part in (key, value))
        output, weights = attend(query, key, value, mask, options)
        context.save_for_backward(query, key, value, weights)
        context.options = options
        return output.view(context.shapes[0])

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = context.saved_tensors
        query, key, value = attend_backward(gradients[0].reshape(saved[0].shape), saved, None, context.options)
        shape = context.shapes[1]
        return query.view(context.shapes[0]), key.view(shape), value.view(shape), None, None


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, projected: torch.Tensor, mask: torch.Tensor | None, options: Options) -> torch.Tensor:
        batch, length, width = projected.shape
        parts = projected.view(batch, length, 3, options.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        query, key, value = parts.view(3, batch * options.heads, length, -1).unbind()
        output, weights = attend(query, key, value, mask, options)
        context.save_for_backward(query, key, value, weights)
        context.options = options
        return output.view(batch, options.heads, length, -1).transpose(1, 2).reshape(batch, length, width // 3)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, heads = context.saved_tensors, context.options.heads
        batch, length, width = gradients[0].shape
        above = gradients[0].view(batch, length, heads, -1).transpose(1, 2).reshape(saved[0].shape)
        parts = above.new_empty(3, *above.shape)
        attend_backward(above, saved, parts, context.options)
        whole = parts.view(3, batch, heads, length, -1).permute(1, 3, 0, 2, 4)
        return whole.reshape(batch, length, 3 * width), None, None


class _HeadByHead(torch.autograd.Function):
    """Short rows: nothing but the input is kept for backward, which makes the softmax again."""

    @staticmethod
    def forward(context: Any, projected: torch.Tensor, mask: torch.Tensor | None, options: Options) -> torch.Tensor:
        batch, length, width = projected.shape
        projected = projected.contiguous()
        result = projected.new_empty(batch, length, width // 3)
        context.shape = (0 if mask is None or len(mask) == 1 else length, *_sizes(projected, options))
        context.save_for_backward(projected, mask)
        context.options = options
        first, *rest = context.shape
        native.call("heads_forward", native.is_half(projected), projected, mask, first, result, *rest)
        return result

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        projected, mask = context.saved_tensors
        result = torch.empty_like(projected)
        first, *rest = context.shape
        above = gradients[0].contiguous()
        native.call("heads_backward", native.is_half(projected), above, projected, mask, first, result, *rest)
        return result, None, None


def _sizes(projected: torch.Tensor, options: Options) -> tuple[float, ...]:
    batch, length, width = projected.shape
    size = width // 3 // options.heads
    return batch, length, options.heads, size, options.scaling, *options.drop
