"""What a watched run recorded of its layers, read from its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from chainrule.evaluation.quantities import finite, listed, mapping

# What is recorded of a layer in each step that was looked at.
QUANTITIES = ("gradient_norm", "update_ratio", "signal", "zeros", "moved", "activation_rms", "activation_zeros")
RATES = ("learning_rate", "weight_decay")  # of a parameter group, beside these

Series = list[float | None]


@dataclass(frozen=True)
class Divergence:
    """A step that was gone back from.

    Attributes:
        first_in: the parameter or module that first gave no number; None where that is not it, or was not found.
        looks: how many there had been before.
    """

    step: int
    reason: str
    first_in: str | None
    looks: int


@dataclass(frozen=True)
class Trace:
    """Series as long as `steps`, None where there was no number.

    Attributes:
        steps: those looked at, in the order in which they were made; one that was made twice is there twice.
        rows: of their batches.
        layers: name -> quantity -> series, from the input to the head; only what is trained.
        groups: the same of the optimizer's parameter groups, with their learning_rate and weight_decay.
        whole: the same of all that is trained.
        silent: names of the parameters without gradient.
        sizes: layer -> its numbers and those of them that are trained, frozen layers included.
        modules: layer -> what the names of its parameters begin with, where they have that in common.
        diverged: steps that were gone back from.
    """

    steps: list[int] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    layers: dict[str, dict[str, Series]] = field(default_factory=dict)
    groups: list[dict[str, Series]] = field(default_factory=list)
    whole: dict[str, Series] = field(default_factory=lambda: {quantity: [] for quantity in QUANTITIES})
    silent: list[frozenset[str]] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    diverged: list[Divergence] = field(default_factory=list)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event of the run; those of other kinds say nothing here."""
        kind, step = event.get("event"), finite(event.get("step"))
        if step is None:
            return
        if kind == "watch":
            for name, counts in mapping(event.get("layers")).items():
                whole, trained = (finite(mapping(counts).get(key)) or 0 for key in ("parameters", "trained"))
                self.sizes[str(name)] = int(whole), int(trained)
                self.modules[str(name)] = str(mapping(counts).get("module") or "")
                if trained:
                    self._layer(str(name))
        elif kind == "diverged":
            first, reason = event.get("first_in"), str(event.get("reason"))
            told = None if first is None else str(first)
            self.diverged.append(Divergence(int(step), reason, told, len(self.steps)))
        elif kind == "gradients":
            self._look(int(step), event)

    def layer_of(self, part: str) -> str | None:
        """The layer that a parameter or module lies in, told as in `Divergence.first_in`."""
        path = f".{part.rpartition(' ')[2]}."
        return next((name for name, module in self.modules.items() if module and f".{module}." in path), None)

    def _look(self, step: int, event: Mapping[str, Any]) -> None:
        layers = {str(name): mapping(values) for name, values in mapping(event.get("layers")).items()}
        groups = [mapping(values) for values in listed(event.get("groups"))]
        for name in layers:
            self._layer(name)
        while len(self.groups) < len(groups):
            self.groups.append(self._empty(*RATES, *QUANTITIES))
        self.steps.append(step)
        self.rows.append(finite(event.get("rows")) or 0.0)
        for name, table in self.layers.items():
            _append(table, layers.get(name, {}))
        for number, table in enumerate(self.groups):
            _append(table, groups[number] if number < len(groups) else {})
        _append(self.whole, mapping(event.get("all")))
        self.silent.append(frozenset(map(str, listed(event.get("silent")))))

    def _layer(self, name: str) -> None:
        self.layers.setdefault(name, self._empty(*QUANTITIES))

    def _empty(self, *quantities: str) -> dict[str, Series]:
        return {quantity: [None] * len(self.steps) for quantity in quantities}


def noise_scale(table: Mapping[str, Series], rows: Iterable[float]) -> float | None:
    """The rows in a batch whose gradient would be as much signal as noise, over all looks.

    McCandlish et al. (2018), An Empirical Model of Large-Batch Training, section 2.2 and appendix A.1: tr(Σ) / |G|²,
    the variance of one row's gradient over the squared norm of the true one G. Of a batch of B rows
    E|g|² = |G|² + tr(Σ) / B. Where they compare two sizes of batch, here the running mean m of the gradients before
    stands for G: it knows nothing of this batch's noise, so E[g · m] ≈ |G|². With s = g · m / |g|² the scale is
    B · Σ (1 − s) |g|² / Σ s |g|²; the sums go over the looks, as single ones are noisy.

    Returns:
        None where the looks show no signal, or no noise.
    """
    noise = signal = 0.0
    for share, norm, size in zip(table["signal"], table["gradient_norm"], rows, strict=True):
        if share is not None and norm is not None:
            signal += share * norm**2
            noise += (1 - share) * norm**2 * size
    return noise / signal if signal > 0 and noise > 0 else None


def typical(series: Iterable[float | None]) -> float | None:
    """The median of the numbers there are."""
    known = [value for value in series if value is not None]
    return median(known) if known else None


def _append(table: Mapping[str, Series], values: Mapping[str, Any]) -> None:
    for quantity, series in table.items():
        series.append(finite(values.get(quantity)))
