"""Soups: Wortsman et al. (2022), Model soups: averaging weights of multiple fine-tuned models improves accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chainrule.core.recipe import Section
from chainrule.core.shelf import NoOptions
from chainrule.merging.base import Score, Weights, refused, weighted_mean


class Options(Section):
    """`weights` are the shares of the models, in their order; none for equal ones."""

    weights: tuple[float, ...] = ()


class Average:
    """The uniform soup, or a weighted one."""

    needs_base = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        shares = self.options.weights or (1.0,) * len(members)
        if len(shares) != len(members) or sum(shares) == 0:
            got = f"{len(shares)} of sum {sum(shares):g}"
            raise refused(f"{len(members)} weights whose sum is not 0", got, "weights")
        return weighted_mean(members, shares)


class Greedy:
    """Recipe 1 of the paper: members from the best to the worst; each stays where the mean is then no worse."""

    needs_base = False

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def merge(self, members: Sequence[Weights], base: Weights | None, score: Score) -> dict[str, torch.Tensor]:
        scores = [score(member) for member in members]
        order = sorted(range(len(members)), key=lambda place: -scores[place])
        kept, best = [members[order[0]]], scores[order[0]]
        for place in order[1:]:
            tried = [*kept, members[place]]
            found = score(weighted_mean(tried, [1.0] * len(tried)))
            if found >= best:
                kept, best = tried, found
        return weighted_mean(kept, [1.0] * len(kept))
