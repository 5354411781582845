"""Dropout from random bytes.

torch's own dropout on a CPU draws one Bernoulli number per element on one thread, which costs more than the matrix
products around it (LOG.md, 2026-11-22). Eight bytes of one 64-bit random integer decide eight elements instead.
"""

from __future__ import annotations

from typing import Any

import torch

LEVELS = 256


def drop_levels(probability: float) -> int:
    """The byte below which an element is dropped: `probability` in 256ths, rounded."""
    return round(probability * LEVELS)


def dropout(values: torch.Tensor, probability: float) -> torch.Tensor:
    """Set each element to 0 with probability t/256, t = round(256 · `probability`), and scale the others.

    The scale is 256 / (256 − t), which matches the rounded probability exactly, so the expectation is the input.
    The bits come from torch's default CPU generator: the same seed gives the same mask.

    Args:
        values: any shape; float64, float32, bfloat16 or float16, on the CPU.
        probability: in [0, 1).

    Raises:
        ValueError: `probability` is out of range or rounds to 1.
    """
    level = drop_levels(probability)
    if not 0 <= probability < 1 or level >= LEVELS:
        raise ValueError(f"the probability of dropout must be in [0, 1) and at most 255/256, got {probability}")
    if level == 0:
        return values
    result: torch.Tensor = _ByteDropout.apply(values, level)  # type: ignore[no-untyped-call]
    return result


def keep_mask(shape: torch.Size, level: int) -> torch.Tensor:
    """A uint8 tensor that is 1 with probability 1 − `level`/256, else 0.

    Not boolean: torch turns bytes into numbers several times faster than booleans.
    """
    count = shape.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64)
    words.random_(-(2**63), None)  # all 64 bits; without a lower end the sign bit would always be 0
    return words.view(torch.uint8)[:count].view(shape).ge(level).view(torch.uint8)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, level: int) -> torch.Tensor:
        kept = keep_mask(values.shape, level)
        context.save_for_backward(kept)
        context.scale = LEVELS / (LEVELS - level)
        return values.mul(kept.to(values.dtype)).mul_(context.scale)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = context.saved_tensors
        gradient = gradients[0]
        return gradient.mul(kept.to(gradient.dtype)).mul_(context.scale), None
