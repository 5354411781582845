"""A table of embeddings whose gradient holds only the rows that a batch has used."""

from __future__ import annotations

from typing import Any

import torch

from chainrule.kernels import native


def embedding(weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
    """weight[ids], with a sparse gradient.

    Args:
        weight: (entries, columns) float32; its gradient is a coalesced sparse tensor of the used rows.
        ids: any shape, int64.
        padding: the entry that takes no gradient, or None.

    Returns:
        (*ids.shape, columns) float32.
    """
    result: torch.Tensor = _Embedding.apply(weight, ids, padding)  # type: ignore[no-untyped-call]
    return result


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        context.save_for_backward(ids)
        context.entries, context.padding = weight.shape[0], padding
        return weight.index_select(0, ids.reshape(-1)).view(*ids.shape, weight.shape[1])

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (ids,) = context.saved_tensors
        gradient = gradients[0]
        flat = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        used, sums = sum_by_row(ids.reshape(-1), flat)
        if context.padding is not None:
            sums[used == context.padding] = 0
        shape = (context.entries, flat.shape[1])
        return torch.sparse_coo_tensor(used[None], sums, shape, is_coalesced=True, check_invariants=False), None, None


def sum_by_row(ids: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the values that share an id.

    Args:
        ids: (n,) int64.
        values: (n, columns).

    Returns:
        The distinct ids in ascending order (u,), and their sums (u, columns) in float32.
    """
    ordered, order = torch.sort(ids)
    used, counts = torch.unique_consecutive(ordered, return_counts=True)
    sums = torch.zeros(len(used), values.shape[1])
    if native.usable(values):
        starts = torch.zeros(len(used) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=starts[1:])
        native.call("gather_sum", native.is_half(values), values, order, starts, sums, len(used), values.shape[1])
    else:
        places = torch.repeat_interleave(torch.arange(len(used)), counts)
        sums.index_add_(0, places, values[order].float())
    return used, sums


def coalesce(gradient: torch.Tensor) -> torch.Tensor:
    """The same sparse gradient with every row once, in order; faster than torch's own."""
    if gradient.is_coalesced():
        return gradient
    used, sums = sum_by_row(gradient._indices()[0], gradient._values())
    return torch.sparse_coo_tensor(used[None], sums, gradient.shape, is_coalesced=True, check_invariants=False)
