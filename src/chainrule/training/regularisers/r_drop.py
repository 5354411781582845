"""R-Drop: Liang et al. (2021), R-Drop: Regularized Dropout for Neural Networks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pydantic import Field
from torch import nn

from chainrule.core.recipe import Section
from chainrule.core.task import Objective
from chainrule.errors import Problem, RecipeError, Where
from chainrule.tasks.objectives import LogitsObjective, backward, logits_of, with_target

_WHERE = Where(field="regularisers.r-drop")


class Options(Section):
    """`alpha` weighs the divergence of the two answers."""

    alpha: float = Field(default=1.0, gt=0)


class RDrop:
    """Equation 4 with the mean of both losses in place of their sum, as in the authors' code.

    Every row goes twice through the model in one batch, with another dropout mask each time.
    """

    def __init__(self, options: Options, inner: Objective, model: Any, trained: Collection[str]) -> None:
        if not isinstance(inner, LogitsObjective):
            raise _unusable(
                "a task with a few logits a row or a word",
                "a task without these",
                "Leave r-drop out.",
            )
        if not any(_dropout_of(module) for module in model.modules()):
            todo = "Set structure.dropout or structure.attention_dropout, or leave r-drop out."
            raise _unusable("a model with dropout, so that two answers differ", "a model without", todo)
        self.inner, self.alpha = inner, options.alpha

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        """Gradients of the sum over rows of (loss 1 + loss 2) / 2 + alpha · (KL(1‖2) + KL(2‖1)) / 2."""
        twice = {name: torch.cat([values, values]) for name, values in batch.inputs.items()}
        answers = [with_target(half, batch.targets) for half in logits_of(model, twice).chunk(2)]
        (first, targets), (second, _) = answers
        losses = self.inner.row_loss(first, targets) + self.inner.row_loss(second, targets)
        total = 0.5 * losses + self.alpha * self.inner.divergence(first, second)
        return backward(total.sum()), len(targets)


def _dropout_of(module: Any) -> float:
    """Its probability; some attentions keep theirs as a number."""
    probability = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
    return float(probability) if isinstance(probability, float | int) else 0.0


def _unusable(expected: str, got: str, todo: str) -> RecipeError:
    return RecipeError("R-Drop cannot be used here.", [Problem(expected, got, todo, _WHERE)])
