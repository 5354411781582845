"""The shelf of learning-rate schedules: step -> factor in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

from chainrule.core.recipe import Schedule, Section, Spec, parse_options, unknown_name

Factor = Callable[[int], float]


class NoOptions(Section):
    """None of these schedules has options beside the warm-up."""


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine, "constant": _constant}


def make_schedule(schedule: Schedule, steps: int) -> Factor:
    """Linear warm-up over the first `schedule.warmup` of `steps`, then the named decay to the last step.

    Returns:
        factor(step) for step = 0 … steps − 1, the step about to be made. It is never 0 before the end.

    Raises:
        RecipeError: no such schedule.
    """
    if schedule.name not in SCHEDULES:
        raise unknown_name("schedule", schedule.name, tuple(SCHEDULES))
    parse_options(NoOptions, Spec(name=schedule.name, options=schedule.options), "schedule")
    decay = SCHEDULES[schedule.name]
    warm = math.ceil(schedule.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return decay((step - warm) / max(steps - warm, 1))

    return factor
