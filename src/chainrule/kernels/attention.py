"""Attention written out as two matrix products and a softmax.

On CPUs the backward of torch's fused attention is several times slower than this in bfloat16 at short lengths, and
with dropout torch leaves its fused path anyway (LOG.md, 2026-11-22).
"""

from __future__ import annotations

import torch

from chainrule.kernels.dropout import dropout as byte_dropout


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """softmax(query · keyᵀ · scaling + mask) · value, with dropout on the softmax.

    Vaswani et al. (2017), Attention Is All You Need, equation 1. A row whose keys are all masked gives finite values.

    Args:
        query: (batch, heads, queries, size).
        key: (batch, heads, keys, size), and `value` likewise.
        mask: broadcasts to (batch, heads, queries, keys): boolean, true where a key may be seen, or numbers that are
            added; None where every key may be seen.
        scaling: usually size ** −0.5.
        dropout: probability, 0 for none.

    Returns:
        (batch, heads, queries, size).
    """
    scores = torch.matmul(query * scaling, key.transpose(-2, -1))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = byte_dropout(weights, dropout)
    return torch.matmul(weights.to(value.dtype), value)
