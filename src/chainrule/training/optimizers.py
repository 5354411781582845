"""The shelf of optimizers, all torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from chainrule.core import recipe
from chainrule.core.recipe import Section, Spec, parse_options, unknown_name


class AdamWOptions(Section):
    """Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


def _adamw(groups: list[dict[str, Any]], spec: Spec) -> torch.optim.Optimizer:
    options = parse_options(AdamWOptions, spec, "optimizer")
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=devices <= {"cpu", "cuda"})


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Spec], torch.optim.Optimizer]] = {"adamw": _adamw}


def make_optimizer(optimizer: recipe.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer a recipe names over torch parameter groups ({"params", "lr", "weight_decay"}).

    Raises:
        RecipeError: no such optimizer, or options it does not have.
    """
    if optimizer.name not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer.name, tuple(OPTIMIZERS))
    return OPTIMIZERS[optimizer.name](groups, Spec(name=optimizer.name, options=optimizer.options))
