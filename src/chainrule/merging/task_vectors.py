"""Merges of what each run added to its base: task vectors.

Ilharco et al. (2023), Editing Models with Task Arithmetic; Yadav et al. (2023), TIES-Merging; Yu et al. (2024),
Language Models are Super Mario (DARE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field

from chainrule.core.recipe import Section
from chainrule.merging.base import Score, Weights, refused, weighted_mean

Combine = Callable[[torch.Tensor], torch.Tensor]  # task vectors (k, …) in float64 -> what is added to the base


class ArithmeticOptions(Section):
    """`scales` multiply the task vectors, in the models' order; one for all of them; negative to subtract."""

    scales: tuple[float, ...] = (0.5,)


class TiesOptions(Section):
    """`density` is the share of each task vector that stays, `scale` multiplies what they make together."""

    density: float = Field(default=0.2, gt=0, le=1)
    scale: float = 1.0


class DareOptions(Section):
    """`drop` is the chance that a number of a task vector goes; the others grow by 1 / (1 − drop)."""

    drop: float = Field(default=0.9, ge=0, lt=1)
    scale: float = 1.0
    seed: int = Field(default=0, ge=0)


class Arithmetic:
    """base + Σ scale · (model − base)."""

    needs_base = True

    def __init__(self, options: ArithmeticOptions) -> None:
        self.options = options

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        scales = self.options.scales * (len(members) if len(self.options.scales) == 1 else 1)
        if len(scales) != len(members):
            raise refused(f"one scale, or {len(members)}", str(len(scales)), "scales")
        factors = torch.tensor(scales, dtype=torch.float64)
        return _merged(members, base, lambda added: torch.tensordot(factors, added, 1))


class Ties:
    """Trim, elect the sign, and average those that have it."""

    needs_base = True

    def __init__(self, options: TiesOptions) -> None:
        self.options = options

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        return _merged(members, base, lambda added: self.options.scale * agreed(trimmed(added, self.options.density)))


class Dare:
    """Task vectors with most numbers dropped at random and the rest grown, averaged."""

    needs_base = True

    def __init__(self, options: DareOptions) -> None:
        self.options = options

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        generator, drop = torch.Generator().manual_seed(self.options.seed), self.options.drop

        def combine(added: torch.Tensor) -> torch.Tensor:
            kept = torch.rand(added.shape, generator=generator) >= drop
            return self.options.scale * (added * kept / (1 - drop)).mean(0)

        return _merged(members, base, combine)


def trimmed(added: torch.Tensor, density: float) -> torch.Tensor:
    """Each task vector (k, …) with its largest numbers alone, this share of them."""
    flat = added.abs().flatten(1)
    count = max(1, round(density * flat.shape[1]))
    least = flat.topk(count, dim=1).values[:, -1]
    return torch.where(added.abs() >= least.reshape(-1, *[1] * (added.dim() - 1)), added, 0.0)


def agreed(added: torch.Tensor) -> torch.Tensor:
    """The mean of those numbers of (k, …) that have the sign of their sum, zeros left out."""
    sign = torch.sign(added.sum(0))
    same = (torch.sign(added) == sign) & (added != 0)
    return (added * same).sum(0) / same.sum(0).clamp_min(1)


def _merged(members: Sequence[Weights], base: Weights | None, combine: Combine) -> dict[str, torch.Tensor]:
    """The base with what `combine` makes of the task vectors; what the base does not have is averaged."""
    if base is None:
        raise ValueError("task vectors are differences from a base")
    made = weighted_mean(members, [1.0] * len(members))
    for name, tensor in base.items():
        if name in made and made[name].shape == tensor.shape and tensor.is_floating_point():
            added = torch.stack([member[name].double() - tensor.double() for member in members])
            made[name] = (tensor.double() + combine(added)).to(made[name].dtype)
    return made
