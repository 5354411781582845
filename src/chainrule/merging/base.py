"""What a merge is: weights of several models, and of their base, to those of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from chainrule.errors import Problem, RecipeError, Where

Weights = Mapping[str, torch.Tensor]
Score = Callable[[Weights], float]  # on validation, the higher the better


class Merge(Protocol):
    """A way to make one model of several."""

    @property
    def needs_base(self) -> bool: ...

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        """The weights of one model, in float32.

        Args:
            members: float32, of the same names and shapes, in the order they were named.
            base: what they were fine-tuned from; what it does not have is averaged. None where it is not needed.
            score: how good weights are on validation.

        Raises:
            RecipeError: there are too few or too many members, or options that do not suit them.
        """
        ...


def refused(expected: str, got: str, field: str) -> RecipeError:
    """Members or options that a way cannot use."""
    problem = Problem(expected, got, "Change the models that are named, or the options.", Where(field=field))
    return RecipeError("These models cannot be merged like this.", [problem])


def weighted_mean(members: Sequence[Weights], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, in float64; whole numbers (such as counts) are the first member's."""
    made = {}
    for name, first in members[0].items():
        if not first.is_floating_point():
            made[name] = first.clone()
            continue
        parts = [share * member[name].double() for share, member in zip(shares, members, strict=True)]
        made[name] = (torch.stack(parts).sum(0) / sum(shares)).to(first.dtype)
    return made
