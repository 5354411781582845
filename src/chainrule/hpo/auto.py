"""The strategy `auto`: chosen by what the layers show before training, and by a short race.

It ends in a recipe with a strategy and a learning rate of its own, which is then trained like any other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from chainrule.core.artifact import Run
from chainrule.core.choice import Choice, LayerEvidence
from chainrule.core.recipe import NamedSpec, Recipe, Section, Spec, parse_options
from chainrule.errors import MissingExtraError, Problem, RecipeError, ShortageError, UserError, Where
from chainrule.hpo.evidence import gather
from chainrule.hpo.race import FEW, Candidate, Race, Result, as_good_as, is_early
from chainrule.hpo.short import Pace, pace_of
from chainrule.models import scratch
from chainrule.models.adapters import has_peft
from chainrule.models.load import width_of
from chainrule.strategies import STRATEGIES, make_strategy, refuse_misfit, reserved_tokens
from chainrule.strategies.base import usual_rate
from chainrule.system.files import refuse_existing
from chainrule.system.lock import only_one
from chainrule.system.memory import PeakMemory, is_shortage
from chainrule.system.progress import Display, Quiet
from chainrule.tasks import TASKS, find_task
from chainrule.tasks.prepare import Prepared
from chainrule.tasks.suited import task_of
from chainrule.training.building import make_job
from chainrule.training.events import require_trackers
from chainrule.training.job import planned_steps
from chainrule.training.optimizers import learning_rate
from chainrule.training.resolve import RESERVE_FOR_THE_REST
from chainrule.training.run import begin, carry_out, keeper_of, plan, prepare_rows

NAME = "auto"
# The preferred first, with factors on their own learning rates; LOG.md, "Which strategies and learning rates race?" and
# "What do six strategies reach?"
FOR_FEW_ROWS = ("contrastive", "gradual", "full", "head")
FOR_MANY_ROWS = ("gradual", "full", "head")
FOR_LANGUAGE_MODELS = ("lora", "full")
FACTORS = (1.0, 1 / 3)
CONTRASTIVE_FACTORS = (1.0, 0.5)
WHOLE = Spec(name="full")
LEAST_SECONDS = 60.0  # for choosing, where no time was named
NOISE = 0.02  # of probes' scores on some hundred rows
LEFT = 0.1  # of the minutes, for training, however long choosing took


class Options(Section):
    """How the strategy is chosen.

    Attributes:
        candidates: strategies to choose from, the preferred first; left open, those that did best on other data.
        share: of the time of the whole training, that choosing may take; of `training.minutes`, at least.
    """

    candidates: tuple[NamedSpec, ...] = ()
    share: float = Field(default=0.25, gt=0, lt=1)


def train_chosen(recipe: Recipe, source: Any, out: Path, display: Display, began: float) -> Run:
    """Find a strategy and a learning rate for a recipe, then carry it out.

    Args:
        source, out, began: as in `train_recipe`.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong.
        StoppedError: Ctrl-C or SIGTERM.
    """
    refuse_existing(out)
    scratch.refuse_misfit(recipe, find_task(recipe.task.name))
    require_trackers(recipe.training.track)
    options = _options(recipe)
    roomiest = max(options.candidates or [WHOLE], key=lambda spec: reserved_tokens(make_strategy(spec)))
    with PeakMemory() as memory:
        prepared, known = prepare_rows(_of(recipe, roomiest), source, display)
        known = known.replace({"optimizer.learning_rate": recipe.optimizer.learning_rate})
        candidates = options.candidates or _usual(recipe, len(prepared.encoded["train"]))
        job, resolved = plan(choose(known, candidates, options.share, prepared, display), prepared, display)
        begin(out, recipe, job, resolved, prepared)
        with only_one(out):
            carry_out(keeper_of(out, resolved), job, resolved, prepared, display, began, memory)
    return Run(out)


def description() -> dict[str, Any]:
    """What `show strategies` tells of it, as of the strategies on the shelf."""
    return {
        "name": NAME,
        "summary": "finds one of the others and its learning rate by a short race (options: candidates, share)",
        "options": Options().model_dump(mode="json"),
        "must_be_given": [],
        "default_learning_rate": None,
        "tasks": dict.fromkeys(TASKS),
    }


def refuse_open(recipe: Recipe, purpose: str) -> None:
    """Make sure that a recipe names its strategy.

    Args:
        purpose: what it is for, as the subject of the message.

    Raises:
        RecipeError: it leaves the strategy open.
    """
    if recipe.strategy.name == NAME:
        todo = "Name one with --strategy; `chainrule show strategies` describes them."
        problem = Problem("one strategy", NAME, todo, Where(field="strategy.name"))
        raise RecipeError(f"{purpose} works on one strategy.", [problem])


def _options(recipe: Recipe) -> Options:
    """The options, if there is something to choose.

    Raises:
        RecipeError: there are no such options or strategies, or nothing is left to choose.
    """
    options, task = parse_options(Options, recipe.strategy, "strategy"), task_of(recipe)
    for place, spec in enumerate(options.candidates):
        make_strategy(spec, f"strategy.options.candidates.{place}")
        refuse_misfit(spec.name, task)
    problems = []
    if len(options.candidates) == 1 and recipe.optimizer.learning_rate is not None:
        expected, got = "two strategies or more, or a learning rate that is left open", options.candidates[0].name
        got, todo = f"{got} at {recipe.optimizer.learning_rate:g}", "Name the strategy with --strategy."
        problems = [Problem(expected, got, todo, Where(field="strategy.options.candidates"))]
    elif task.whole_batches:
        expected, todo = "a task whose rows are learned one by one", "Name the strategy with --strategy."
        problems = [Problem(expected, task.name, todo, Where(field="strategy.name"))]
    elif recipe.distillation.teachers:
        expected, todo = (
            "a student whose strategy is named",
            "Name it with --strategy.",
        )  # what teachers say is of all rows
        problems = [Problem(expected, "auto with teachers", todo, Where(field="distillation.teachers"))]
    elif recipe.training.folds is not None:
        expected = "a strategy that was not chosen by rows that the folds hold out"
        todo = "Name it with --strategy. One found on these rows makes the score of the folds look better than it is."
        problems = [Problem(expected, "auto with folds", todo, Where(field="training.folds"))]
    if problems:
        raise RecipeError("The strategy cannot be chosen like this.", problems)
    return options


def _usual(recipe: Recipe, rows: int) -> tuple[Spec, ...]:
    """What did well on other data with as many rows."""
    task = task_of(recipe)
    names = FOR_LANGUAGE_MODELS if task.writes else FOR_FEW_ROWS if rows <= FEW else FOR_MANY_ROWS
    fitting = [name for name in names if STRATEGIES[name].misfit(task) is None and (name != "lora" or has_peft())]
    return tuple(Spec(name=name) for name in fitting)


def choose(recipe: Recipe, strategies: Sequence[Spec], share: float, prepared: Prepared, display: Display) -> Recipe:
    """The recipe with the strategy and the learning rate that did best, and why, under `choice`.

    With `training.minutes` choosing and training share the time.

    Args:
        strategies: to choose from, the preferred first.
        share: of the time of the whole training, that choosing may take.

    Raises:
        RecipeError: a strategy cannot be used on this model.
        ShortageError: there is memory for none of them.
        StoppedError: Ctrl-C or SIGTERM.
    """
    began, minutes = time.perf_counter(), recipe.training.minutes
    display.say("Choosing the strategy: what each layer knows, and how sure its gradient is …")
    probe_metric, layers = _look(recipe, prepared)
    timed, pace, fitting = _paced(recipe, strategies, prepared, display)
    steps = planned_steps(timed, len(prepared.encoded["train"]))
    allowed = max(LEAST_SECONDS, share * steps * pace.step)
    if minutes is not None:  # choosing may take what the training leaves
        allowed = max(share * minutes * 60, minutes * 60 - RESERVE_FOR_THE_REST * steps * pace.step)
        steps = min(steps, max(1, int((minutes * 60 - allowed) / RESERVE_FOR_THE_REST / pace.step)))
    left = max(0.0, allowed - (time.perf_counter() - began))
    candidates = _candidates(recipe, fitting, layers)
    names = ", ".join(dict.fromkeys(candidate.strategy.name for candidate in candidates))
    display.say(f"Choosing the strategy: a race of {names}, for about {left:.0f} s.")
    race = Race(recipe.replace({"training.precision": timed.training.precision}), prepared, left, pace)
    results = race.run(candidates, steps, display)
    winner, verdict = _winner(results, candidates, race.metric)
    took = time.perf_counter() - began
    choice = Choice(
        by=NAME,
        reasons=(*_seen(layers, probe_metric, len(prepared.encoded["train"])), verdict),
        metric=race.metric,
        probe_metric=probe_metric,
        layers=layers,
        trials=tuple(result.trial for result in results),
        seconds=round(took, 2),
        allowed_seconds=round(allowed, 2),
    )
    display.say(f"Strategy {winner.strategy.name} at a learning rate of {winner.learning_rate:g}: {verdict}")
    rest = None if minutes is None else max(minutes - took / 60, LEFT * minutes)
    known = {"training.minutes": rest, "training.precision": timed.training.precision}
    return _at(recipe, winner).replace(known | {"choice": choice.model_dump(mode="json")})


def _look(recipe: Recipe, prepared: Prepared) -> tuple[str | None, tuple[LayerEvidence, ...]]:
    """What the layers show; nothing for a language model, where it would decide nothing, or where memory is short."""
    if find_task(recipe.task.name).writes:
        return None, ()
    plain = _at(recipe.replace({"training.accelerate": False}), Candidate(WHOLE, _rates(recipe, WHOLE)[0]))
    try:
        return gather(make_job(plain, replace(prepared, unlabelled=None), Quiet()), recipe.seed)
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        return None, ()


def _paced(
    recipe: Recipe, strategies: Sequence[Spec], prepared: Prepared, display: Display
) -> tuple[Recipe, Pace, list[Spec]]:
    """The recipe with its number format chosen, the pace of the slowest, and the strategies that there is memory for.

    Raises:
        RecipeError: a candidate cannot be used on this model.
        ShortageError: there is memory for none of them.
    """
    timed, paces, fitting, short = recipe.replace({"training.minutes": None}), list[Pace](), list[Spec](), None
    for spec in strategies:
        try:
            pace, precision = pace_of(_at(timed, Candidate(spec, _rates(recipe, spec)[0])), prepared)
        except ShortageError as error:
            display.say(f"warning: {spec.name} does not take part: {error.message}")
            short = error
            continue
        except (RecipeError, MissingExtraError) as error:
            raise _unusable(spec, error) from error
        paces.append(pace)
        timed = timed.replace({"training.precision": precision})
        fitting.append(spec)
    if short is not None and not fitting:
        raise short
    return timed, Pace(paces[-1].load, max(pace.step for pace in paces)), fitting


def _unusable(spec: Spec, error: UserError) -> RecipeError:
    """What is wrong with a candidate, said of the place where it is named."""
    problems = [replace(problem, where=Where(field="strategy.options.candidates")) for problem in error.problems]
    return RecipeError(f"The candidate {spec.name!r} cannot be trained. {error.message}", problems)


def _of(recipe: Recipe, spec: Spec) -> Recipe:
    return recipe.replace({"strategy": spec.model_dump(mode="json")})


def _at(recipe: Recipe, candidate: Candidate) -> Recipe:
    return _of(recipe, candidate.strategy).replace({"optimizer.learning_rate": candidate.learning_rate})


def _rates(recipe: Recipe, spec: Spec) -> list[float]:
    """The learning rates that a strategy is tried at."""
    if recipe.optimizer.learning_rate is not None:
        return [recipe.optimizer.learning_rate]
    own = learning_rate(recipe.optimizer, usual_rate(STRATEGIES[spec.name].make, width_of(recipe.model.name)))
    return [float(f"{own * by:.3g}") for by in (CONTRASTIVE_FACTORS if spec.name == "contrastive" else FACTORS)]


def _candidates(recipe: Recipe, strategies: Sequence[Spec], layers: Sequence[LayerEvidence]) -> list[Candidate]:
    """Strategies at learning rates, the preferred first: each strategy at its first rate, then each at the next."""
    specs = [_above_what_is_known(spec, layers) for spec in strategies]
    rates = zip(*(_rates(recipe, spec) for spec in specs), strict=True)
    return [Candidate(*pair) for tried in rates for pair in zip(specs, tried, strict=True)]


def _above_what_is_known(spec: Spec, layers: Sequence[LayerEvidence]) -> Spec:
    """`partial` without options trains what lies above the lowest layer that knows as much as any."""
    known = _lowest_of_the_best(layers)
    if spec.name != "partial" or spec.options or known is None:
        return spec
    above = sum(1 for layer in layers[known + 1 :] if layer.layer.startswith("layer "))
    return spec.model_copy(update={"options": {"top": max(1, above)}})


def _lowest_of_the_best(layers: Sequence[LayerEvidence]) -> int | None:
    """The lowest layer whose probe is within NOISE of the best; None where nothing was probed."""
    scores = [layer.probe for layer in layers if layer.probe is not None]
    if not scores:
        return None
    return next(n for n, layer in enumerate(layers) if layer.probe is not None and layer.probe >= max(scores) - NOISE)


def _seen(layers: Sequence[LayerEvidence], metric: str | None, rows: int) -> list[str]:
    """What the layers say, in words."""
    told, known = [], _lowest_of_the_best(layers)
    if known is not None:
        lowest, at = next(layer for layer in layers if layer.probe is not None), layers[known]
        below = f"; on that of {lowest.layer} it reaches {lowest.probe:.3f}" if lowest is not at else ""
        told.append(
            f"A linear model on the mean state of {at.layer} reaches {metric} {at.probe:.3f}, and no layer above it is "
            f"better by more than {NOISE:g}{below}."
        )
    scales = [layer.noise_scale for layer in layers if layer.noise_scale is not None]
    if layers and scales:
        told.append(
            f"The gradient of {len(scales)} of {len(layers)} parts is as much signal as noise in a batch of "
            f"{min(scales):,.0f} to {max(scales):,.0f} rows; there are {rows:,} to learn from."
        )
    return told


def _winner(results: Sequence[Result], candidates: Sequence[Candidate], metric: str) -> tuple[Candidate, str]:
    """The candidate that is preferred of those that are as good as the best, and what made it so."""
    broken = [result.candidate for result in results if result.predictions is None]
    there = [result for result in results if result.candidate not in broken]
    if not there:
        if len(candidates) == 1:
            return candidates[0], "there is nothing else to try."
        why = "every trial failed" if results else "there was no time for a race"
        return candidates[0], f"{why}; it comes first in the order of preference."
    last = [result for result in there if result.trial.round == there[0].trial.round]
    best, *rest = last
    as_good = [best, *(result for result in rest if as_good_as(result, best))]
    winner = min(as_good, key=lambda result: candidates.index(result.candidate))
    told = f"{metric} {winner.trial.score:.4f} after {winner.trial.steps:,} steps on {winner.trial.rows:,} rows"
    if winner is not best:
        within = "two standard errors" if is_early(winner, best) else "a standard error"
        after = f" after {best.trial.steps:,}" if best.trial.steps != winner.trial.steps else ""
        told += f", within {within} of the best, {_named(best.candidate)} with {best.trial.score:.4f}{after}"
    others = ", ".join(f"{_named(r.candidate)} {r.trial.score:.4f}" for r in last if r not in (winner, best))
    return winner.candidate, f"{told}; {others}." if others else f"{told}."


def _named(candidate: Candidate) -> str:
    return f"{candidate.strategy.name} at {candidate.learning_rate:g}"
