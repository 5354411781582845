"""FGM: Miyato et al. (2017), Adversarial Training Methods for Semi-Supervised Text Classification."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pydantic import Field

from chainrule.core.recipe import Section
from chainrule.core.task import Objective
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import plain_model
from chainrule.tasks.vectors import VectorObjective


class Options(Section):
    """`epsilon` is how far the word embeddings of a row are moved, all its tokens together."""

    epsilon: float = Field(default=1.0, gt=0)


class FGM:
    """The loss, and the loss once more where the word embeddings of each row are moved by epsilon · g / ‖g‖.

    Equations 5 and 6; g is the gradient of the row's loss with respect to them. They are not scaled beforehand. What is
    moved are the outputs of the table, not the table: rows do not touch each other, and it may be frozen.
    """

    def __init__(self, options: Options, inner: Objective, model: Any, trained: Collection[str]) -> None:
        if plain_model(model).main_input_name == "pixel_values":
            problem = Problem("a task of texts", "images", "Leave fgm out.", Where(field="regularisers.fgm"))
            raise RecipeError("FGM moves the embeddings of words.", [problem])
        if isinstance(inner, VectorObjective):
            problem = Problem(
                where=Where(field="regularisers.fgm"),
                expected="a task whose rows have losses of their own",
                got="vectors that are learned from each other",
                todo="Leave fgm out.",
            )
            raise RecipeError("FGM cannot be used here.", [problem])
        self.inner, self.epsilon = inner, options.epsilon

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        """Gradients of the sum of both losses."""
        table = plain_model(model).get_input_embeddings()
        seen: list[torch.Tensor] = []

        def watch(module: Any, inputs: Any, words: torch.Tensor) -> torch.Tensor:
            words = words if words.requires_grad else words.detach().requires_grad_()
            words.retain_grad()
            seen.append(words)
            return words

        with table.register_forward_hook(watch):
            loss, count = self.inner.accumulate(model, batch)
        gradient = seen[0].grad if seen else None
        if gradient is None:
            raise ValueError("a loss must depend on the word embeddings")
        shift = self.epsilon * of_length_one(gradient)

        def move(module: Any, inputs: Any, words: torch.Tensor) -> torch.Tensor:
            return words + shift.to(words.dtype)

        with table.register_forward_hook(move):
            moved_loss, _ = self.inner.accumulate(model, batch)
        return loss + moved_loss, count


def of_length_one(gradient: torch.Tensor) -> torch.Tensor:
    """Each row (t, d) of (b, t, d) divided by its Euclidean norm; zeros stay zeros."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    norms = wide.flatten(1).norm(dim=1).clamp_min(torch.finfo(wide.dtype).tiny)
    unit: torch.Tensor = wide / norms[:, None, None]
    return unit
