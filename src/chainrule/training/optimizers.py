"""The shelf of optimizers: torch's own, the compiled AdamW with the same numbers, and Lion.

Weight decay comes in two kinds (Loshchilov and Hutter, 2019): decoupled, where each step takes a share of the weight
away; and L2, where the share joins the gradient and goes through the update rule with it. Each summary says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field, model_validator

from chainrule.core import recipe
from chainrule.core.recipe import Section, Spec
from chainrule.core.shelf import Entry, take
from chainrule.kernels import native
from chainrule.kernels.adamw import NativeAdamW

Groups = list[dict[str, Any]]
Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Protocol):
    """What the loop asks of an optimizer.

    Attributes:
        gradient_scale: multiplies every gradient in the next step.
        state: parameter -> name -> tensor or plain number, all that a checkpoint keeps of it.
    """

    gradient_scale: float
    param_groups: list[dict[str, Any]]
    state: Any

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def add_param_group(self, param_group: dict[str, Any]) -> None: ...


class Scaled:
    """One of torch's optimizers with the factor on every gradient that the loop asks for.

    Gradients that come in bfloat16, or of some rows only, are made what torch expects: in the parameter's own format
    and whole.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.gradient_scale = inner, 1.0
        self.param_groups, self.state = inner.param_groups, inner.state

    def step(self) -> None:
        """Scale the gradients, then update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad.to_dense().to(parameter.dtype)
                    parameter.grad = gradient.mul_(self.gradient_scale)
        self.gradient_scale = 1.0
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train these parameters too."""
        self.inner.add_param_group(param_group)


class Lion(torch.optim.Optimizer):
    """Chen et al. (2023), Symbolic Discovery of Optimization Algorithms, algorithm 2."""

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 1e-4, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                direction = state["exp_avg"].lerp(parameter.grad, 1 - first).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                state["exp_avg"].lerp_(parameter.grad, 1 - second)


class SGDOptions(Section):
    """Momentum as in torch; Nesterov's as in Sutskever et al. (2013)."""

    momentum: Share = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _looks_ahead_by_momentum(self) -> SGDOptions:
        if self.nesterov and not self.momentum:
            raise ValueError("a momentum above 0 where nesterov is true")
        return self


class AdamOptions(Section):
    """Kingma and Ba (2015), Adam; for adamw Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization."""

    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


class RMSPropOptions(Section):
    """Tieleman and Hinton (2012), lecture 6.5; `centered` as in Graves (2013)."""

    alpha: Share = 0.99
    eps: float = Field(default=1e-8, gt=0)
    momentum: Share = 0.0
    centered: bool = False


class AdafactorOptions(Section):
    """Shazeer and Stern (2018), Adafactor: an update is `learning_rate` times the size of the weights it changes.

    `d` is the largest root mean square of an update; `eps` are epsilon 1 (null: that of the format) and epsilon 2.
    """

    beta2_decay: float = Field(default=-0.8, le=0)
    eps: tuple[Annotated[float, Field(gt=0)] | None, Annotated[float, Field(gt=0)]] = (None, 1e-3)
    d: float = Field(default=1.0, ge=1)


class LionOptions(Section):
    """Chen et al. (2023): `betas` of the update's direction and of the momentum that is kept."""

    betas: tuple[Share, Share] = (0.9, 0.99)


def _adamw(options: AdamOptions, groups: Groups) -> Optimizer:
    parameters = [parameter for group in groups for parameter in group["params"]]
    if all(native.usable(parameter) and parameter.dtype == torch.float32 for parameter in parameters):
        return NativeAdamW(groups, options.betas, options.eps)
    return Scaled(torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=_fuses(groups)))


def _adam(options: AdamOptions, groups: Groups) -> Optimizer:
    return Scaled(torch.optim.Adam(groups, betas=options.betas, eps=options.eps, fused=_fuses(groups)))


def _sgd(options: SGDOptions, groups: Groups) -> Optimizer:
    return Scaled(torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov))


def _rmsprop(options: RMSPropOptions, groups: Groups) -> Optimizer:
    return Scaled(torch.optim.RMSprop(groups, **options.model_dump()))


def _adafactor(options: AdafactorOptions, groups: Groups) -> Optimizer:
    return Scaled(torch.optim.Adafactor(groups, **options.model_dump()))


def _lion(options: LionOptions, groups: Groups) -> Optimizer:
    return Scaled(Lion(groups, options.betas))


def _fuses(groups: Groups) -> bool:
    return {parameter.device.type for group in groups for parameter in group["params"]} <= {"cpu", "cuda"}


@dataclass(frozen=True)
class Rule(Entry):
    """One line of this shelf.

    Attributes:
        rate: how many times AdamW's its learning rate is, where a recipe gives none.
    """

    rate: float = 1.0


OPTIMIZERS: dict[str, Rule] = {
    "adamw": Rule(AdamOptions, _adamw, "Adam with decoupled weight decay; compiled on a CPU"),
    "adam": Rule(AdamOptions, _adam, "Adam; weight decay is L2"),
    "sgd": Rule(SGDOptions, _sgd, "stochastic gradient descent with momentum; weight decay is L2", 200),
    "rmsprop": Rule(RMSPropOptions, _rmsprop, "gradients over their recent size; weight decay is L2"),
    "adafactor": Rule(AdafactorOptions, _adafactor, "Adam's sizes by row and column; decoupled weight decay", 20),
    "lion": Rule(LionOptions, _lion, "the sign of a momentum; decoupled weight decay", 0.3),
}


def make_optimizer(optimizer: recipe.Optimizer, groups: Groups) -> Optimizer:
    """The optimizer a recipe names over torch parameter groups ({"params", "lr", "weight_decay"}).

    Raises:
        RecipeError: as `update_rule`.
    """
    return update_rule(optimizer)(groups)


def update_rule(optimizer: recipe.Optimizer) -> Callable[[Groups], Optimizer]:
    """What makes the optimizer a recipe names.

    Raises:
        RecipeError: no such optimizer, or options it does not have.
    """
    return take(OPTIMIZERS, Spec(name=optimizer.name, options=optimizer.options), "optimizer")


def learning_rate(optimizer: recipe.Optimizer, usual: float) -> float:
    """The one a recipe gives, else what suits its optimizer.

    Args:
        usual: the strategy's own, which is for AdamW.
    """
    return optimizer.learning_rate or usual * OPTIMIZERS[optimizer.name].rate


def is_native(optimizer: Optimizer) -> bool:
    """Whether the weights are updated by the compiled AdamW, which trusts its state."""
    while hasattr(optimizer, "inner"):
        optimizer = optimizer.inner
    return isinstance(optimizer, NativeAdamW)
