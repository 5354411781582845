"""Heads fitted to the targets before step one, and made plain again before saving."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from chainrule.models.inspect import output_layer

MIN_DEVIATION = 1e-12


class Affine(nn.Module):
    """value ↦ scale · value + shift."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.scale * value + self.shift


def scale_output(model: Any, targets: np.ndarray) -> None:
    """Let the output layer work on standardised targets while its outputs stay in the targets' own unit.

    The layer's weight is parametrised as s · w and its bias as s · b + m, with mean m and standard deviation s of the
    training targets, so that one learning rate suits targets of any size. `settle` folds both into the layer.
    """
    deviation = max(float(np.std(targets)), MIN_DEVIATION)
    layer = output_layer(model)
    parametrize.register_parametrization(layer, "weight", Affine(deviation, 0.0))
    if "bias" in dict(layer.named_parameters()):
        torch.nn.init.zeros_(layer.bias)
        parametrize.register_parametrization(layer, "bias", Affine(deviation, float(np.mean(targets))))


def settle(model: nn.Module) -> None:
    """Make every parametrised layer a plain one with the same outputs, so that plain transformers can load it."""
    for module in list(model.modules()):
        found = dict(module.named_children()).get("parametrizations")  # its own: PEFT's wrappers lend those inside
        if isinstance(found, nn.ModuleDict):
            for name in list(found):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
