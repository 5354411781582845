"""Quantisation-aware training: Jacob et al. (2018), Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, section 3."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import nn

from chainrule.core.recipe import Section
from chainrule.core.task import Objective
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.inspect import layer_stack


class Options(Section):
    """`bits` of weights and of what is multiplied with them; `inputs` whether those are rounded, too."""

    bits: int = Field(default=8, ge=2, le=8)
    inputs: bool = True


class Rounding:
    """Linear layers compute with rounded weights and inputs, and gradients go to the weights as if they were not.

    Weights symmetrically, with a scale for each output; inputs with a scale and a zero for each tensor, whose range is
    that of the micro-batch. Gradients pass the rounding straight through (Bengio et al., 2013), so the trained weights
    stay floating-point numbers, which change little when they are rounded in earnest.
    """

    def __init__(self, options: Options, inner: Objective, model: Any, trained: Collection[str]) -> None:
        self.inner, self.options = inner, options
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        known = ((layer, names[id(layer.weight)]) for layer in linear_layers(model))
        self.layers = [(layer, name) for layer, name in known if name in trained]
        where = Where(field="regularisers.rounding")
        if not self.layers:
            expected, todo = "a strategy that trains linear layers, such as full or partial", "Choose another strategy."
            raise RecipeError("Nothing would be rounded.", [Problem(expected, "one that trains none", todo, where)])
        if options.inputs and any("forward" in module.__dict__ for module in model.modules()):
            expected = "layers whose inputs can be reached: training.accelerate=false"
            todo = "Set it, or round the weights alone: regularisers.rounding.inputs=false."
            problem = Problem(expected, "kernels that join several layers", todo, where)
            raise RecipeError("The inputs of layers cannot be rounded.", [problem])

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        """Gradients of the loss at the rounded weights."""
        named = dict(model.named_parameters())
        weights = {name: named[name] for _, name in self.layers}
        with ExitStack() as stack:
            if self.options.inputs:
                for layer, _ in self.layers:
                    stack.enter_context(layer.register_forward_pre_hook(self._round_input))
            stack.enter_context(self._rounded(weights))
            return self.inner.accumulate(model, batch)

    @contextmanager
    def _rounded(self, weights: Mapping[str, Any]) -> Iterator[None]:
        """Inside, the parameters hold what is left after rounding."""
        own = {name: parameter.detach().clone() for name, parameter in weights.items()}
        try:
            with torch.no_grad():
                for parameter in weights.values():
                    parameter.copy_(rounded_weight(parameter, self.options.bits))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in weights.items():
                    parameter.copy_(own[name])

    def _round_input(self, layer: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return rounded_input(given[0], self.options.bits), *given[1:]


def linear_layers(model: Any) -> list[nn.Linear]:
    """Those in the stack of a model, which are what is rounded."""
    return [part for block in layer_stack(model) for part in block.modules() if isinstance(part, nn.Linear)]


def rounded_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest of 2 ** bits - 1 even steps around zero, (outputs, inputs); the largest of each output stays."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / most
    rounded: torch.Tensor = (weight / scale).round() * scale
    return rounded


def rounded_input(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest of 2 ** bits even steps between the least and the largest of `values`, with zero among the steps."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    low, high = (bound.detach() for bound in torch.aminmax(wide))
    low, high, steps = low.clamp_max(0.0), high.clamp_min(0.0), 2**bits - 1
    scale = ((high - low) / steps).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round()
    rounded = ((wide / scale + zero).round().clamp(0, steps) - zero) * scale
    found: torch.Tensor = (wide + (rounded - wide).detach()).to(values.dtype)
    return found
