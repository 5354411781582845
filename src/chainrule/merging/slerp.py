"""Spherical interpolation, tensor by tensor: Shoemake (1985), Animating rotation with quaternions, section 3.3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from chainrule.core.recipe import Section
from chainrule.merging.base import Score, Weights, refused

PARALLEL = 1 - 1e-6  # of the cosine: nearer than this, the arc is a line


class Options(Section):
    """`t` is the way from the first model (0) to the second (1)."""

    t: float = Field(default=0.5, ge=0, le=1)


class Slerp:
    """Takes two models."""

    needs_base = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        if len(members) != 2:
            raise refused("two models", str(len(members)), "--method slerp")
        first, second = members
        return {
            name: between(tensor, second[name], self.options.t) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in first.items()
        }


def between(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """sin((1−t)Ω)/sin Ω · first + sin(tΩ)/sin Ω · second, with Ω the angle between the two as vectors."""
    a, b = first.double().flatten(), second.double().flatten()
    lengths = a.norm() * b.norm()
    cosine = float((a @ b / lengths).clamp(-1, 1)) if lengths > 0 else 1.0
    if abs(cosine) > PARALLEL:
        mixed = (1 - t) * a + t * b
    else:
        angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
        mixed = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return mixed.reshape(first.shape).to(first.dtype)
