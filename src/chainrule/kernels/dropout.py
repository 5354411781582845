"""Dropout whose mask costs next to nothing.

torch's own dropout on a CPU draws one Bernoulli number per element on one thread, which costs more than the matrix
products around it (LOG.md, 2026-11-22). Here one byte decides one element. The compiled kernels hash each byte from a
key and the element's place, so that no mask is stored: backward makes it again. Plain torch cuts bytes from random
64-bit integers.
"""

from __future__ import annotations

from typing import Any

import torch

from chainrule.kernels import native

LEVELS = 256
Key = tuple[int, int]


def drop_levels(probability: float) -> int:
    """The byte below which an element is dropped: `probability` in 256ths, rounded.

    Raises:
        ValueError: `probability` is out of range or rounds to 1.
    """
    level = round(probability * LEVELS)
    if not 0 <= probability < 1 or level >= LEVELS:
        raise ValueError(f"the probability of dropout must be in [0, 1) and at most 255/256, got {probability}")
    return level


def draw_key() -> Key:
    """Two random 32-bit numbers from torch's default generator: the key of one mask."""
    first, second = torch.randint(0, 2**32, (2,), dtype=torch.int64).tolist()
    return int(first), int(second)


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
    if level == 0:
        return values
    function = _HashedDropout if native.usable(values) else _ByteDropout
    result: torch.Tensor = function.apply(values, level)  # type: ignore[no-untyped-call]
    return result


def keep_mask(shape: torch.Size, level: int) -> torch.Tensor:
    """A uint8 tensor that is 1 with probability 1 − `level`/256, else 0.

    Not boolean: torch turns bytes into numbers several times faster than booleans.
    """
    count = shape.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64)
    words.random_(-(2**63), None)  # all 64 bits; without a lower end the sign bit would always be 0
    return words.view(torch.uint8)[:count].view(shape).ge(level).view(torch.uint8)


class _HashedDropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, level: int) -> torch.Tensor:
        context.drop = (level, *draw_key())
        return _dropped(values, context.drop)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _dropped(gradients[0], context.drop), None


def _dropped(values: torch.Tensor, drop: tuple[int, int, int]) -> torch.Tensor:
    values = values.contiguous()
    result = torch.empty_like(values)
    columns = values.shape[-1] if values.ndim else 1
    rows = values.numel() // max(columns, 1)
    native.call("dropout", native.is_half(values), values, result, rows, columns, *drop)
    return result


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
