"""Penalties of the trained weights: L1, L2, and L2-SP.

As with weight decay, biases and norms (vectors) pay nothing. The gradient of a penalty goes through the update rule;
`optimizer.weight_decay` of an optimizer whose decay is decoupled does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from pydantic import Field

from chainrule.core.recipe import Section
from chainrule.core.task import Objective
from chainrule.models.load import is_pretrained

Term = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # weights -> penalty (0-d), its gradient


class Options(Section):
    """`strength` weighs the penalty against the mean loss of a row."""

    strength: float = Field(gt=0)


class Penalty:
    """count · strength · the sum of a term over the trained matrices, beside the summed loss of count rows.

    Args:
        start: what a parameter's distance is measured from, by name; from 0 where it is not there.
    """

    def __init__(self, inner: Objective, strength: float, term: Term, start: dict[str, torch.Tensor]) -> None:
        self.inner, self.strength, self.term, self.start = inner, strength, term, start

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        """Gradients of the loss and of the penalty. Tables get whole gradients, not of the used rows alone."""
        loss, count = self.inner.accumulate(model, batch)
        weight = count * self.strength
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad or parameter.ndim < 2:
                    continue
                start = self.start.get(name)
                value, slope = self.term(parameter if start is None else parameter - start)
                loss = loss + weight * value
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
                parameter.grad = gradient.add_(slope, alpha=weight)
        return loss, count


def l1(options: Options, inner: Objective, model: Any, trained: Collection[str]) -> Penalty:
    """Σ |w|, Tibshirani (1996), whose slope at 0 is taken to be 0."""
    return Penalty(inner, options.strength, lambda weights: (weights.abs().sum(), weights.sign()), {})


def l2(options: Options, inner: Objective, model: Any, trained: Collection[str]) -> Penalty:
    """Σ w² / 2."""
    return Penalty(inner, options.strength, _half_square, {})


def l2_sp(options: Options, inner: Objective, model: Any, trained: Collection[str]) -> Penalty:
    """Σ (w − w⁰)² / 2 toward the pretrained w⁰; fresh weights (heads, adapters) toward 0.

    Li et al. (2018), Explicit Inductive Bias for Transfer Learning with Convolutional Networks, section 3, with alpha =
    beta = `strength`. One more copy of the trained pretrained matrices is kept.
    """
    start = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name in trained and parameter.ndim >= 2 and is_pretrained(parameter)
    }
    return Penalty(inner, options.strength, _half_square, start)


def _half_square(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.5 * weights.square().sum(), weights
