"""Attention in the fastest of several ways: on tiles where there are any, else as a processor and sizes have it.

"products": two matrix products and a softmax. On CPUs the backward of torch's fused attention is several times slower
in bfloat16 at short lengths, and with dropout torch leaves its fused path anyway (LOG.md, 2026-11-22).
"head by head": each head's scores stay in the processor's caches and are made again for the gradient.
"flash": torch's fused attention (Dao et al., 2022), without dropout; its memory grows with the length, not its square.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from chainrule.kernels import native
from chainrule.kernels.attention_options import Options, byte_mask, heads_of, options_of
from chainrule.kernels.dropout import dropout as drop
from chainrule.kernels.fastest import fastest
from chainrule.kernels.tiled_attention import TiledAttention, TiledSelfAttention, tiled

HEAD_BY_HEAD_TO = 512  # tokens; longer rows were not tried
TIMED_TOKENS = 4096  # of a batch, at most, when ways are timed


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
        options = options_of(batch, heads, scaling, dropout, False)
        if tiled(*heads_of(projected, heads)[:2]):
            result: torch.Tensor = TiledSelfAttention.apply(projected, bytes_mask, options)  # type: ignore[no-untyped-call]
            return result
        ways: dict[str, Way] = {"products": _SelfAttention.apply}
        if length <= HEAD_BY_HEAD_TO and (bytes_mask is None or bytes_mask.shape[1] == 1):
            ways["head by head"] = _HeadByHead.apply
        if not dropout and not (options.keep and native.is_half(projected)):  # its gradients in bfloat16 round more
            ways["flash"] = _flash
        return _in_fastest_way(ways, projected, bytes_mask, options)
    query, key, value = heads_of(projected, heads)
    output = attention(query, key, value, mask, scaling, dropout)
    return output.transpose(1, 2).reshape(batch, length, width // 3)


Way = Callable[[torch.Tensor, torch.Tensor | None, Options], torch.Tensor]


def _in_fastest_way(
    ways: Mapping[str, Way], projected: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    """Which way that is, is found on some rows of the first batch whose length lies between the same powers of two."""
    _, length, width = projected.shape
    some = {"dropout": options.drop[0], "training": options.keep, "mask": mask is not None}
    told = [str(projected.dtype).removeprefix("torch."), f"heads of {width // 3 // options.heads}"]
    told += [f"{1 << (length - 1).bit_length()} tokens", *(word for word, true in some.items() if true)]

    def timed(way: Way) -> Callable[[], None]:
        return lambda: _make_once(way, projected, mask, options)

    name = os.environ.get("CHAINRULE_ATTENTION", "")
    if name not in ways:
        name = fastest(" ".join(("attention", *told)), {name: timed(way) for name, way in ways.items()})
    return ways[name](projected, mask, options)


def _make_once(way: Way, projected: torch.Tensor, mask: torch.Tensor | None, options: Options) -> None:
    """Forward, and backward where one will follow, of some rows."""
    rows = max(1, min(options.batch, TIMED_TOKENS // projected.shape[1]))
    few = projected[:rows].detach().requires_grad_(options.keep)
    some = mask if mask is None or len(mask) == 1 else mask[:rows]
    # Whoever counts what a forward keeps for its backward counts none of this.
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
        made = way(few, some, replace(options, batch=rows))
        if options.keep:
            torch.autograd.grad(made, few, torch.ones_like(made))


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _flash(projected: torch.Tensor, mask: torch.Tensor | None, options: Options) -> torch.Tensor:
    query, key, value = heads_of(projected, options.heads)
    added = None
    if mask is not None:  # numbers: with true and false, torch gives a row that sees nothing zeros, and not the mean
        zero = projected.new_zeros(())
        added = torch.where(mask.view(torch.bool), zero, zero + torch.finfo(zero.dtype).min)[:, None]
    attended = functional.scaled_dot_product_attention(query, key, value, added, scale=options.scaling)
    return attended.transpose(1, 2).flatten(2)


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
