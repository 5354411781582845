"""The shelf of optimizers: torch's own, or the compiled one with the same numbers where it can be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field

from chainrule.core import recipe
from chainrule.core.recipe import Section, Spec, parse_options, unknown_name
from chainrule.kernels import native
from chainrule.kernels.adamw import NativeAdamW


class Optimizer(Protocol):
    """What the loop asks of an optimizer.

    Attributes:
        gradient_scale: multiplies every gradient in the next step.
    """

    gradient_scale: float
    param_groups: list[dict[str, Any]]
    state: Any  # parameter -> name -> tensor or number

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def add_param_group(self, param_group: dict[str, Any]) -> None: ...


_Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamWOptions(Section):
    """Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization."""

    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


def _adamw(groups: list[dict[str, Any]], spec: Spec) -> Optimizer:
    options = parse_options(AdamWOptions, spec, "optimizer")
    parameters = [parameter for group in groups for parameter in group["params"]]
    if all(native.usable(parameter) and parameter.dtype == torch.float32 for parameter in parameters):
        return NativeAdamW(groups, options.betas, options.eps)
    devices = {parameter.device.type for parameter in parameters}
    return TorchAdamW(groups, betas=options.betas, eps=options.eps, fused=devices <= {"cpu", "cuda"})


class TorchAdamW(torch.optim.AdamW):
    """torch's own AdamW, with the factor on every gradient that the loop asks for."""

    gradient_scale = 1.0

    def step(self, closure: Any = None) -> Any:
        """Scale the gradients, then update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.gradient_scale)
        self.gradient_scale = 1.0
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Spec], Optimizer]] = {"adamw": _adamw}


def make_optimizer(optimizer: recipe.Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer a recipe names over torch parameter groups ({"params", "lr", "weight_decay"}).

    Raises:
        RecipeError: no such optimizer, or options it does not have.
    """
    if optimizer.name not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer.name, tuple(OPTIMIZERS))
    return OPTIMIZERS[optimizer.name](groups, Spec(name=optimizer.name, options=optimizer.options))
