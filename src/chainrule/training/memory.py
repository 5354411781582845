"""How many rows fit into memory at once, found out before step one on a single row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from chainrule.core.task import Objective
from chainrule.data.batch import Batch
from chainrule.errors import Problem, ShortageError
from chainrule.system.memory import free_address_space, free_memory
from chainrule.system.seed import kept_generators

SHARE = 0.8  # of what is free; the rest is for validation and what is not counted
# Float32 for each trained number: its gradient, AdamW's two moments, a copy of the best so far and one of the start.
TRAINED_BYTES = 20
AVERAGED_BYTES = 4  # one more, where weights are averaged


# The tokenizer, the threads and the libraries' own tables reserve about half of this, and some end the process where
# they cannot (LOG.md, 2026-11-22).
LEAST_ADDRESS_SPACE = 1 << 30


def require_address_space() -> None:
    """Make sure that a limit on address space leaves the libraries what they reserve.

    Raises:
        ShortageError: it does not.
    """
    space = free_address_space()
    if space is None or space >= LEAST_ADDRESS_SPACE:
        return
    problem = Problem(
        expected=f"at least {LEAST_ADDRESS_SPACE >> 20:,} MB of address space for threads, tokenizer and tables",
        got=f"{space >> 20:,} MB left of the limit (ulimit -v)",
        todo="Raise the limit: ulimit -v unlimited.",
    )
    raise ShortageError("The limit on address space is too low.", [problem])


def rows_that_fit(
    model: Any, objective: Objective, row: Batch, autocast: Callable[[], Any], trained: int, free: int
) -> int:
    """Rows as long as `row` whose forward and backward fit beside the optimizer's state.

    Args:
        row: one row, the longest there is.
        trained: number of trained parameters.
        free: bytes.

    Raises:
        ShortageError: not even one does.
    """
    needed = saved_bytes(model, objective, row, autocast)
    if needed + TRAINED_BYTES * trained > free:
        problem = Problem(
            expected=f"{(needed + TRAINED_BYTES * trained) >> 20:,} MB for one row of {row.tokens:,} tokens, "
            f"{trained:,} trained parameters and the optimizer's state",
            got=f"{free >> 20:,} MB free",
            todo="Close other programs, lower --max-length, or train less: --strategy partial, head or lora.",
        )
        raise ShortageError("There is not enough memory for this training.", [problem])
    return max(1, int((SHARE * free - TRAINED_BYTES * trained) // max(needed, 1)))


def saved_bytes(model: Any, objective: Objective, batch: Batch, autocast: Callable[[], Any]) -> int:
    """Bytes that one forward keeps for its backward, weights not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    for parameter in model.parameters():
        kept = [getattr(parameter, name, None) for name in ("rounded", "stack")]
        known.update(tensor.untyped_storage().data_ptr() for tensor in kept if tensor is not None)
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with kept_generators(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast():
        objective.accumulate(model, batch)
    model.zero_grad(set_to_none=True)
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """Bytes that a device may still give."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_memory()
