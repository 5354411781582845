"""What the ways to make an attention share: how it is made, masks as bytes, heads as views."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chainrule.kernels.dropout import draw_key, drop_levels


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


def heads_of(projected: torch.Tensor, heads: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, each (batch, heads, length, size), as views of (batch, length, 3 · heads · size)."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
