"""The shelf of learning-rate schedules: the step about to be made -> factor in (0, 1] on every learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from chainrule.core.recipe import Schedule, Section, Spec
from chainrule.core.shelf import Entry, NoOptions, take


class Factor(Protocol):
    """The step about to be made, and the evaluations so far (`Moment`) -> factor on every learning rate."""

    def __call__(self, step: int, waits: Sequence[int] = ()) -> float: ...


@dataclass(frozen=True)
class Moment:
    """Where in a run a step is.

    Attributes:
        step: the one about to be made, from 0.
        warm: how many steps warm up.
        steps: of the whole run.
        waits: after each evaluation so far, how many evaluations there had been since a better one.
    """

    step: int
    warm: int
    steps: int
    waits: Sequence[int] = ()

    @property
    def progress(self) -> float:
        """The share of the steps after the warm-up that has been made."""
        return (self.step - self.warm) / max(self.steps - self.warm, 1)


class EndOptions(Section):
    """`end` is what is left of the learning rate after the last step, as a share of it."""

    end: float = Field(default=0.0, ge=0, lt=1)


class PolynomialOptions(EndOptions):
    """`power` 1 is linear; above it, the rate falls fast at first."""

    power: float = Field(default=2.0, gt=0)


class StepOptions(Section):
    """After the warm-up the rate is multiplied by `factor` `drops` times, at even distances."""

    drops: int = Field(default=2, ge=1)
    factor: float = Field(default=0.1, gt=0, lt=1)


class ExponentialOptions(Section):
    """Every step multiplies the rate by the same number, so that `end` of it is left after the last."""

    end: float = Field(default=0.01, gt=0, lt=1)


class OneCycleOptions(Section):
    """Begins at `start` of the rate, ends at `end` of that."""

    start: float = Field(default=0.04, gt=0, lt=1)
    end: float = Field(default=1e-4, gt=0, lt=1)


class PlateauOptions(Section):
    """Multiplies the rate by `factor` whenever `patience` evaluations in a row were none the better."""

    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=2, ge=1)


def _linear(options: EndOptions, moment: Moment) -> float:
    return _between(1.0 - moment.progress, options.end)


def _cosine(options: EndOptions, moment: Moment) -> float:
    return _between(0.5 * (1.0 + math.cos(math.pi * moment.progress)), options.end)


def _polynomial(options: PolynomialOptions, moment: Moment) -> float:
    return _between((1.0 - moment.progress) ** options.power, options.end)


def _constant(options: NoOptions, moment: Moment) -> float:
    return 1.0


def _step(options: StepOptions, moment: Moment) -> float:
    after, left = moment.step - moment.warm, max(moment.steps - moment.warm, 1)
    return float(options.factor ** (after * (options.drops + 1) // left))


def _exponential(options: ExponentialOptions, moment: Moment) -> float:
    return float(options.end**moment.progress)


def _inverse_sqrt(options: NoOptions, moment: Moment) -> float:
    """Vaswani et al. (2017), Attention Is All You Need, equation 3."""
    warm = max(moment.warm, 1)
    return math.sqrt(warm / (moment.step - moment.warm + warm))


def _plateau(options: PlateauOptions, moment: Moment) -> float:
    return float(options.factor ** sum(wait > 0 and wait % options.patience == 0 for wait in moment.waits))


def _one_cycle(options: OneCycleOptions, moment: Moment) -> float:
    """Smith and Topin (2018), Super-Convergence, the learning rate alone; its halves are cosines, as in torch."""
    peak, last = max(moment.warm - 1, 0), moment.steps - 1
    if moment.step < peak:
        return _between(0.5 * (1.0 - math.cos(math.pi * moment.step / peak)), options.start)
    fall = (moment.step - peak) / max(last - peak, 1)
    return _between(0.5 * (1.0 + math.cos(math.pi * fall)), options.start * options.end)


def _between(share: float, end: float) -> float:
    return end + (1.0 - end) * share


def _warmed(decay: Callable[[Any, Moment], float]) -> Callable[[Any, Moment], float]:
    """Linear warm-up, then `decay`."""

    def factor(options: Any, moment: Moment) -> float:
        if moment.step < moment.warm:
            return (moment.step + 1) / (moment.warm + 1)
        return decay(options, moment)

    return factor


SCHEDULES: dict[str, Entry] = {
    "linear": Entry(EndOptions, _warmed(_linear), "evenly down to `end`"),
    "cosine": Entry(EndOptions, _warmed(_cosine), "half a cosine down to `end`"),
    "polynomial": Entry(PolynomialOptions, _warmed(_polynomial), "down to `end` by a power of what is left"),
    "constant": Entry(NoOptions, _warmed(_constant), "as it is"),
    "step": Entry(StepOptions, _warmed(_step), "multiplied by `factor` a few times"),
    "exponential": Entry(ExponentialOptions, _warmed(_exponential), "multiplied by the same number at every step"),
    "inverse-sqrt": Entry(NoOptions, _warmed(_inverse_sqrt), "one over the root of the step's number"),
    "one-cycle": Entry(
        OneCycleOptions, _one_cycle, "half a cosine up during the warm-up, half a cosine down to almost 0"
    ),
    "reduce-on-plateau": Entry(
        PlateauOptions, _warmed(_plateau), "multiplied by `factor` where validation stands still"
    ),
}


def make_schedule(schedule: Schedule, steps: int) -> Factor:
    """Warm-up over the first `schedule.warmup` of `steps`, then the named way down to the last step.

    Returns:
        factor(step, waits) for step = 0 … steps − 1, the step about to be made. It is never 0 before the end.

    Raises:
        RecipeError: no such schedule, or options it does not have.
    """
    shape = take(SCHEDULES, Spec(name=schedule.name, options=schedule.options), "schedule")
    warm = math.ceil(schedule.warmup * steps)

    def factor(step: int, waits: Sequence[int] = ()) -> float:
        return float(shape(Moment(step, warm, steps, waits)))

    return factor
