"""The learning-rate range test: a short training whose learning rate grows from step to step, to see which rates suit.

Smith (2017), Cyclical Learning Rates for Training Neural Networks, section 3.3. There the rate grows by the same amount
each step, here by the same factor, as rates that differ by powers of ten are tried. What it trains is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.core.recipe import Recipe
from chainrule.core.report import RateReport
from chainrule.errors import Problem, RecipeError, StoppedError, Where
from chainrule.evaluation.rate_page import write_rate_page
from chainrule.system.files import refuse_existing
from chainrule.system.progress import Display
from chainrule.system.stop import stop_requests, who_stopped
from chainrule.training.checkpoint import Standing
from chainrule.training.divergence import DivergenceError
from chainrule.training.job import Job
from chainrule.training.resolve import planned_seconds, resolve
from chainrule.training.run import prepare_job
from chainrule.training.shortage import steps_in_memory
from chainrule.training.trainer import referring, settle_formats

FEWEST = 20  # steps that show a curve
EXPLODED = 4.0  # times the lowest running mean of the losses: higher rates only make it worse
MEMORY = 0.9  # of the running mean, per step
WIDTH = 0.2  # of the smoothing, in powers of ten of the learning rate
SUGGESTED = 0.1  # of the rate at which the loss is lowest; LOG.md says how that did


@dataclass(frozen=True)
class Range:
    """The learning rates to try: from `low` to `high` in so many steps, each the same factor above the one before."""

    low: float = 1e-7
    high: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse what is no range.

        Raises:
            RecipeError: `low` is not above 0 and below `high`, or there are too few steps to see anything.
        """
        problems = []
        if not 0 < self.low < self.high < math.inf:
            got = f"from {self.low:g} to {self.high:g}"
            problems.append(Problem("a low learning rate above 0 and a higher one", got, "Change --low or --high."))
        if self.steps < FEWEST:
            todo, where = "Raise --steps.", Where(field="steps")
            problems.append(Problem(f"at least {FEWEST} steps, to see a curve", str(self.steps), todo, where))
        if problems:
            raise RecipeError("These learning rates cannot be tried.", problems)

    def rates(self) -> np.ndarray:
        """(steps,) float64."""
        return np.geomspace(self.low, self.high, self.steps)


def find_rate(recipe: Recipe, source: Any, tried: Range, page: Path | None, display: Display) -> RateReport:
    """Try a range of learning rates with the data, model, task and strategy of a recipe. The model is thrown away.

    Args:
        source: what to read instead of `recipe.data.source`: a path or an object that holds rows; None for neither.
        page: where to write an HTML page with the plot, which must not exist; None for nowhere.

    Raises:
        UserError: the recipe, the data, the model or the page's path is wrong.
        StoppedError: Ctrl-C or SIGTERM.
    """
    if page is not None:
        refuse_existing(page)
    changes = {"optimizer.learning_rate": tried.high, "training.steps": tried.steps, "training.minutes": None}
    off = {"training.profile": False, "training.watch_gradients": False, "training.averaging": None}
    job, prepared, recipe = prepare_job(recipe.replace(changes | off), source, display)
    recipe = resolve(job, recipe, display)
    settle_formats(job, recipe, tried.steps)
    job = referring(job, recipe, display)
    expected = planned_seconds(job, recipe)
    display.say(f"Trying learning rates from {tried.low:g} to {tried.high:g}: at most about {expected:.0f} s.")
    losses, stopped = _try(job, recipe, tried, display)
    rates = tried.rates()[: len(losses)]
    smooth = smoothed(rates, losses)
    steepest, lowest = read_curve(rates, smooth)
    report = RateReport(
        task=recipe.task.name,
        model=recipe.model.name,
        strategy=recipe.strategy.name,
        data=prepared.report.source,
        learning_rates=tuple(rates.tolist()),
        losses=tuple(losses),
        smoothed=tuple(smooth.tolist()),
        steepest=steepest,
        lowest=lowest,
        suggestion=None if lowest is None else float(f"{SUGGESTED * lowest:.2g}"),
        stopped=stopped,
    )
    if page is not None:
        write_rate_page(page, report)
    return report


def _try(job: Job, recipe: Recipe, tried: Range, display: Display) -> tuple[list[float], str]:
    """The loss of each step, and why there were no more."""
    factors, losses, lowest = tried.rates() / tried.high, list[float](), math.inf

    def schedule(step: int, waits: Sequence[int] = ()) -> float:
        return float(factors[step])

    steps = steps_in_memory(job, recipe, Standing(), lambda event: None, display, schedule)
    try:
        with display.bar("trying learning rates", tried.steps) as bar, stop_requests(display.say) as request:
            for step in steps:
                losses.append(step.loss)
                bar.advance(1, f"learning rate {step.learning_rate:.1e}  loss {step.loss:.4f}")
                if request.signal is not None:
                    raise _stopped(request.signal, step.step, tried.steps)
                mean = running_mean(losses)
                lowest = min(lowest, mean)
                if mean > EXPLODED * lowest:
                    return losses, f"the loss had become {EXPLODED:g} times its lowest"
    except DivergenceError:
        return losses, "the loss was no number any more"
    return losses, "all were tried"


def _stopped(number: int, step: int, steps: int) -> StoppedError:
    name, code = who_stopped(number)
    problem = Problem(f"{steps:,} steps", f"{step:,}; nothing is kept", "Start it again, or with fewer --steps.")
    return StoppedError(f"Stopped by {name} after step {step:,}.", [problem], code)


def read_curve(rates: np.ndarray, smooth: np.ndarray) -> tuple[float | None, float | None]:
    """The learning rate at which the loss falls the fastest, and that at which it is lowest; None where it never falls.

    Args:
        rates: (n,) growing.
        smooth: (n,) the smoothed losses.
    """
    if len(smooth) < FEWEST:
        return None, None
    lowest = int(smooth.argmin())
    slopes = np.gradient(smooth, np.log10(rates))[: lowest + 1]
    if slopes.min() >= 0:
        return None, None
    return float(rates[slopes.argmin()]), float(rates[lowest])


def smoothed(rates: np.ndarray, losses: Sequence[float]) -> np.ndarray:
    """Each loss as the mean of those around it, weighed by a Gaussian of WIDTH powers of ten of the rate.

    Args:
        rates: (n,).

    Returns:
        (n,). At both ends, where one side is missing, the mean is of the other.
    """
    places = np.log10(rates)
    weights = np.exp(-0.5 * ((places[:, None] - places[None]) / WIDTH) ** 2)
    return np.asarray(weights @ np.asarray(losses, dtype=np.float64) / weights.sum(1))


def running_mean(losses: Sequence[float]) -> float:
    """The mean of all losses, each counting MEMORY times as much as the one after it."""
    weights = MEMORY ** np.arange(len(losses), dtype=np.float64)[::-1]
    return float(weights @ np.asarray(losses) / weights.sum())
