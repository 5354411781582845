"""The time and the memory there are, and how much of a training fits into them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from chainrule.core.prediction import Prediction
from chainrule.core.recipe import Recipe
from chainrule.planning.cost import Pace, predict
from chainrule.training.measure import Load, Measured
from chainrule.training.resolve import RESERVE_FOR_THE_REST


@dataclass(frozen=True)
class Limits:
    """What a training may take; None for no limit.

    Attributes:
        minutes: of all of it: steps, validation, saving.
        memory_mb: at its peak. `asked` is whether somebody named it; else it is what this machine has free.
    """

    minutes: float | None = None
    memory_mb: float | None = None
    asked: bool = False

    @property
    def seconds(self) -> float | None:
        """Of the steps alone, the rest taken off."""
        return None if self.minutes is None else self.minutes * 60 / RESERVE_FOR_THE_REST

    def with_free(self, megabytes: int) -> Limits:
        """What was asked for, and no more memory than there is."""
        if self.memory_mb is not None and self.memory_mb <= megabytes:
            return replace(self, asked=True)
        return replace(self, memory_mb=float(megabytes), asked=False)

    def excess(self, prediction: Prediction) -> float:
        """The larger of the two shares of a limit that a training takes; up to 1 it fits."""
        time = 0.0 if self.seconds is None else prediction.seconds / self.seconds
        return max(time, 0.0 if self.memory_mb is None else prediction.peak_memory_mb / self.memory_mb)

    def in_memory(self, prediction: Prediction) -> bool:
        """Whether memory is enough."""
        return self.memory_mb is None or prediction.peak_memory_mb <= self.memory_mb

    def why(self, prediction: Prediction) -> str:
        """What there is too little of."""
        if not self.in_memory(prediction):
            return f"needs {prediction.peak_memory_mb:,.0f} MB; there are {self.memory_mb:,.0f}"
        return f"needs {self.needed(prediction):.3g} minutes; there are {self.minutes:g}" if self.minutes else ""

    def needed(self, prediction: Prediction) -> float:
        """Minutes of all of a training."""
        return prediction.seconds * RESERVE_FOR_THE_REST / 60

    def verdict(self, prediction: Prediction, names: tuple[str, str], *, fits: bool) -> str:
        """Go or no-go, in a sentence."""
        model, strategy = names
        takes = f"about {prediction.seconds:,.0f} s of training and {prediction.peak_memory_mb:,.0f} MB"
        if fits:
            return f"Go: {model} with {strategy} takes {takes}."
        lacking = []
        if not self.in_memory(prediction):
            where = f"--memory {math.ceil(prediction.peak_memory_mb / 102.4) / 10:g}"
            free = f"{self.memory_mb:,.0f} MB" + (" asked for" if self.asked else " free here")
            lacking.append(f"more memory than the {free}" + (f" ({where} would do)" if self.asked else ""))
        if self.seconds is not None and prediction.seconds > self.seconds:
            minutes = math.ceil(10 * self.needed(prediction)) / 10
            lacking.append(f"more time than {self.minutes:g} minutes (--minutes {minutes:g} would do)")
        return f"No go: the nearest, {model} with {strategy}, takes {takes}: {' and '.join(lacking)}."

    def as_dict(self) -> dict[str, float | None]:
        """For the report."""
        return {"seconds": self.seconds, "peak_memory_mb": self.memory_mb}


def in_time(recipe: Recipe, measured: Measured, pace: Pace, limits: Limits, resident: int) -> tuple[Recipe, Prediction]:
    """The recipe with as many epochs as there is time for, one at least, and what it will take.

    A recipe that counts steps or whose first epoch is its only one stays as it is.
    """
    prediction = predict(measured, pace, resident)
    epochs = recipe.training.epochs
    if limits.seconds is None or epochs is None or recipe.training.steps is not None:
        return recipe, prediction
    total = prediction.steps
    least = max(1, math.ceil(total / epochs)) + (1 if measured.work.frozen else 0)
    shorter = prediction
    for _ in range(4):  # the share that fits, again where warming up and frozen layers make it too large
        if shorter.seconds <= limits.seconds or shorter.steps <= least:
            break
        steps = max(least, min(shorter.steps - 1, int(shorter.steps * limits.seconds / shorter.seconds)))
        shorter = predict(replace(measured, whole=_first(measured.whole, steps)), pace, resident)
    if shorter.steps == total:
        return recipe, prediction
    fewer = math.floor(1000 * epochs * shorter.steps / total) / 1000
    return recipe.replace({"training.epochs": max(fewer, 1.0)}), shorter


def _first(load: Load, steps: int) -> Load:
    return Load(load.tokens[:steps], load.squares[:steps], np.arange(steps) / steps)
