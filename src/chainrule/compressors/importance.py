"""How much a loss changes when a part of a model goes: by its first derivative, over real rows.

A gate ξ = 1 multiplies what a part hands on: a neuron, a group of heads, or what a layer adds to what goes past it.
Then ξ → 0 takes the part away, and by a first-order expansion the loss of row x changes by −∂L(x)/∂ξ. What is
summed over rows:

- `taylor`: I = E_x |∂L(x)/∂ξ|. Michel, Levy and Neubig (2019), Are Sixteen Heads Really Better than One?, section 4.1:
  "expected sensitivity" of heads; by the chain rule it is |Att(x)ᵀ ∂L/∂Att(x)|.
- `fisher`: I = E_x (∂L(x)/∂ξ)², the diagonal of the empirical Fisher information of the gates. Molchanov et al. (2019),
  Importance Estimation for Neural Network Pruning, section 3: the first-order criterion (g · w)², with gates for w.

Derivatives are those of each row by itself, since every row of a batch has gates of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from chainrule.core.task import Objective
from chainrule.data.batch import by_length, collate
from chainrule.data.encode import Encoded
from chainrule.inference.predict import Predictor
from chainrule.models.inspect import layer_stack
from chainrule.models.narrowing import Anchors, linear_of

Measure = Literal["taylor", "fisher"]
BATCH_TOKENS = 2048  # with what the backward pass needs


@dataclass(frozen=True)
class Importances:
    """What each part matters.

    Attributes:
        layers: (layers,).
        neurons, groups: (layers, neurons or groups).
        tokens: of a sequence, on average.
        rows: of how many rows, or sequences.
    """

    layers: torch.Tensor
    neurons: torch.Tensor
    groups: torch.Tensor
    tokens: float
    rows: int


def importances(
    predictor: Predictor,
    model: Any,
    family: Anchors,
    groups: int,
    rows: Encoded,
    objective: Objective,
    measure: Measure,
) -> Importances:
    """How much the parts of a model matter on some rows.

    Args:
        predictor: what the rows were encoded with.
        model: its model on the CPU in float32, without faster kernels; nothing of it is trainable.
        groups: of heads in a layer; 1 where heads stay.
    """
    forward, stack = predictor.forward, layer_stack(model)
    gates = [_Gates(1), _Gates(linear_of(stack[0], family.down).in_features), _Gates(groups)]
    with _gated(model, family, gates), torch.enable_grad():
        for places in by_length(rows.lengths, BATCH_TOKENS):
            batch = collate(rows, places, pad_id=forward.pad_id, left=forward.pad_left, device=torch.device("cpu"))
            objective.accumulate(model, batch)
            for each in gates:
                each.collect(measure)
    layers, neurons, heads = (each.mean(len(stack)) for each in gates)
    tokens = gates[1].tokens / max(1, gates[1].calls) if rows.pixels is not None else np.diff(rows.offsets).mean()
    return Importances(layers[:, 0], neurons, heads, float(tokens), gates[1].rows)


@dataclass
class _Gates:
    """Gates of one kind in all layers."""

    width: int
    made: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    tokens: float = 0.0
    calls: int = 0

    def gate(self, place: int, values: torch.Tensor) -> torch.Tensor:
        """A new gate in a layer for each row, to be multiplied with `values` (rows, …, numbers)."""
        shape = (len(values), *[1] * (values.ndim - 2), self.width)
        gate = torch.ones(shape, requires_grad=True)
        self.made.setdefault(place, []).append(gate)
        self.calls += 1
        self.tokens += values.shape[1] if values.ndim > 2 else 1
        return gate

    def collect(self, measure: Measure) -> None:
        """Take in the derivatives of the batch that has gone through."""
        for place, gates in self.made.items():
            for gate in gates:
                if gate.grad is None:
                    continue
                found = gate.grad.flatten(1).double()
                found = found.abs() if measure == "taylor" else found**2
                self.sums[place] = self.sums.get(place, torch.zeros(self.width, dtype=torch.float64)) + found.sum(0)
                self.counts[place] = self.counts.get(place, 0) + len(found)
            gates.clear()

    def mean(self, layers: int) -> torch.Tensor:
        """(layers, width)."""
        none = torch.zeros(self.width, dtype=torch.float64)
        return torch.stack([self.sums.get(place, none) / max(1, self.counts.get(place, 1)) for place in range(layers)])

    @property
    def rows(self) -> int:
        """How many there were."""
        return max(self.counts.values(), default=0)


@contextmanager
def _gated(model: Any, family: Anchors, gates: list[_Gates]) -> Iterator[None]:
    """Inside, gates are put into every forward of which gradients are kept."""
    layers, neurons, groups = gates
    hooks = []
    for place, layer in enumerate(layer_stack(model)):
        hooks.append(layer.get_submodule(family.down).register_forward_pre_hook(_before(neurons, place)))
        if groups.width > 1:
            hooks.append(layer.get_submodule(family.attended).register_forward_pre_hook(_before(groups, place)))
        hooks.append(layer.register_forward_hook(_around(layers, place), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(gates: _Gates, place: int) -> Any:
    def hook(module: nn.Module, given: tuple[torch.Tensor, ...]) -> Any:
        if not torch.is_grad_enabled():
            return None
        values = given[0]
        gate = gates.gate(place, values)
        return (values * gate.repeat_interleave(values.shape[-1] // gates.width, -1), *given[1:])

    return hook


def _around(gates: _Gates, place: int) -> Any:
    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        past = given[0] if given else named["hidden_states"]
        values = made[0] if isinstance(made, tuple) else made
        gated = past + gates.gate(place, values) * (values - past)
        return (gated, *made[1:]) if isinstance(made, tuple) else gated

    return hook
