"""Mixout: Lee et al. (2020), Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from chainrule.core.recipe import Section
from chainrule.core.task import Objective
from chainrule.errors import Problem, RecipeError, Where
from chainrule.kernels.dropout import LEVELS, drop_levels, keep_mask
from chainrule.models.load import is_pretrained


class Options(Section):
    """`probability` that a weight is the pretrained one, in 256ths."""

    probability: float = Field(default=0.7, gt=0, le=0.99)


class Mixout:
    """Each forward reads u + M ∘ (w − u) / (1 − p) for a linear layer's weight w and its pretrained value u: section 3.

    M is 1 with probability 1 − p, so that the expectation is w. One M serves a micro-batch. The pretrained weights are
    kept, and one copy of the present ones while a micro-batch is worked through.
    """

    def __init__(self, options: Options, inner: Objective, model: Any, trained: Collection[str]) -> None:
        self.inner, self.level = inner, drop_levels(options.probability)
        linear = {id(m._parameters.get("weight")) for m in model.modules() if isinstance(m, nn.Linear | Conv1D)}
        self.pretrained = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if name in trained and id(parameter) in linear and is_pretrained(parameter)
        }
        if not self.pretrained:
            raise RecipeError(
                "Mixout cannot be used here.",
                [
                    Problem(
                        where=Where(field="regularisers.mixout"),
                        expected="a strategy that trains pretrained linear layers, such as full or partial",
                        got="one that trains none",
                        todo="Choose another strategy, or leave mixout out.",
                    )
                ],
            )

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        """Gradients of the loss under the mixed weights, with respect to the weights themselves."""
        named = dict(model.named_parameters())
        trained = {name: named[name] for name in self.pretrained if named[name].requires_grad}
        keeps = {name: self._keep(parameter) for name, parameter in trained.items()}
        earlier = {name: parameter.grad for name, parameter in trained.items()}
        for parameter in trained.values():
            parameter.grad = None
        with self._mixed(trained, keeps):
            result = self.inner.accumulate(model, batch)
        for name, parameter in trained.items():
            if parameter.grad is not None:
                parameter.grad.mul_(keeps[name])
            parameter.grad = _sum(parameter.grad, earlier[name])
        return result

    def _keep(self, parameter: torch.Tensor) -> torch.Tensor:
        """M / (1 − p)."""
        kept = keep_mask(parameter.shape, self.level).to(parameter.device, parameter.dtype)
        return kept.mul_(LEVELS / (LEVELS - self.level))

    @contextmanager
    def _mixed(self, trained: Mapping[str, Any], keeps: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, the parameters hold the mixed weights."""
        own = {name: parameter.detach().clone() for name, parameter in trained.items()}
        try:
            with torch.no_grad():
                for name, parameter in trained.items():
                    start = self.pretrained[name]
                    parameter.sub_(start).mul_(keeps[name]).add_(start)
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(own[name])


def _sum(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)
