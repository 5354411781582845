"""The strategy `auto`: chosen by what the layers show before training, and by a short race.

It ends in a recipe with a strategy and a learning rate of its own, which is then trained like any other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from chainrule.core.artifact import Run
from chainrule.core.choice import Choice, LayerEvidence
from chainrule.core.recipe import NamedSpec, Recipe, Section, Spec, parse_options
from chainrule.errors import Problem, RecipeError, StoppedError, Where
from chainrule.hpo.evidence import gather
from chainrule.hpo.race import FEW, Candidate, Race, Result
from chainrule.models.adapters import has_peft
from chainrule.strategies import STRATEGIES, make_strategy, refuse_misfit, reserved_tokens
from chainrule.system.files import refuse_existing
from chainrule.system.lock import only_one
from chainrule.system.memory import PeakMemory
from chainrule.system.progress import Display, Quiet
from chainrule.tasks import TASKS, find_task
from chainrule.tasks.prepare import Prepared
from chainrule.training.events import require_trackers
from chainrule.training.job import planned_steps
from chainrule.training.optimizers import learning_rate
from chainrule.training.resolve import RESERVE_FOR_THE_REST, planned_seconds
from chainrule.training.run import begin, carry_out, keeper_of, make_job, plan, prepare_rows

NAME = "auto"
# The preferred first, with factors on their own learning rates; LOG.md, "Which strategies and learning rates race?"
FOR_FEW_ROWS = ("contrastive", "gradual", "full")
FOR_MANY_ROWS = ("full", "gradual", "partial")
FOR_LANGUAGE_MODELS = ("lora", "full")
FACTORS = (1.0, 3.0)
WHOLE = Spec(name="full")
LEAST_SECONDS = 60.0  # for choosing, where no time was named
NOISE = 0.02  # of probes' scores on some hundred rows
LEFT = 0.1  # of the minutes, for training, however long choosing took


class Options(Section):
    """How the strategy is chosen.

    Attributes:
        candidates: strategies to choose from, the preferred first; left open, those that did best on other data.
        share: of the time of the whole training, that choosing may take.
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
    require_trackers(recipe.training.track)
    options = _options(recipe)
    roomiest = max(options.candidates or [WHOLE], key=lambda spec: reserved_tokens(make_strategy(spec)))
    with PeakMemory() as memory:
        prepared, known = prepare_rows(_of(recipe, roomiest), source, display)
        known = known.replace({"optimizer.learning_rate": recipe.optimizer.learning_rate})
        candidates = options.candidates or _usual(recipe, sum(map(len, prepared.encoded.values())))
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
    options, task = parse_options(Options, recipe.strategy, "strategy"), find_task(recipe.task.name)
    for spec in options.candidates:
        refuse_misfit(spec.name, task)
        make_strategy(spec)
    problems = []
    if len(options.candidates) == 1 and recipe.optimizer.learning_rate is not None:
        expected, got = "two strategies or more, or a learning rate that is left open", options.candidates[0].name
        got, todo = f"{got} at {recipe.optimizer.learning_rate:g}", "Name the strategy with --strategy."
        problems = [Problem(expected, got, todo, Where(field="strategy.options.candidates"))]
    elif recipe.training.folds is not None:
        expected = "a strategy that was not chosen by rows that the folds hold out"
        todo = "Choose first without --folds; then name with --strategy what was found."
        problems = [Problem(expected, "auto with folds", todo, Where(field="training.folds"))]
    if problems:
        raise RecipeError("The strategy cannot be chosen like this.", problems)
    return options


def _usual(recipe: Recipe, rows: int) -> tuple[Spec, ...]:
    """What did well on other data with as many rows."""
    task = find_task(recipe.task.name)
    names = FOR_LANGUAGE_MODELS if task.head == "language-model" else FOR_FEW_ROWS if rows <= FEW else FOR_MANY_ROWS
    fitting = [name for name in names if STRATEGIES[name].misfit(task) is None and (name != "lora" or has_peft())]
    return tuple(Spec(name=name) for name in fitting)


def choose(recipe: Recipe, strategies: Sequence[Spec], share: float, prepared: Prepared, display: Display) -> Recipe:
    """The recipe with the strategy and the learning rate that did best, and why, under `choice`.

    With `training.minutes` choosing and training share the time.

    Args:
        strategies: to choose from, the preferred first.
        share: of the time of the whole training, that choosing may take.

    Raises:
        StoppedError: Ctrl-C or SIGTERM.
    """
    began = time.perf_counter()
    minutes, open_ended = recipe.training.minutes, recipe.replace({"training.minutes": None})
    display.say("Choosing the strategy: what each layer knows, and how sure its gradient is …")
    plain = _at(open_ended.replace({"training.accelerate": False}), Candidate(WHOLE, _rates(recipe, WHOLE)[0]))
    probe_metric, layers = gather(make_job(plain, prepared, Quiet()), recipe.seed)
    job, timed = plan(_at(open_ended, Candidate(strategies[0], _rates(recipe, strategies[0])[0])), prepared, Quiet())
    steps, seconds = planned_steps(timed, len(job.train)), planned_seconds(job, timed)
    allowed, each = max(LEAST_SECONDS, share * seconds), seconds / steps
    if minutes is not None:
        allowed = share * minutes * 60
        steps = min(steps, max(1, int((1 - share) * minutes * 60 / RESERVE_FOR_THE_REST / each)))
    del job
    left = allowed - (time.perf_counter() - began)
    race = Race(open_ended.replace({"training.precision": timed.training.precision}), prepared, left, each)
    candidates = _candidates(recipe, strategies, layers)
    names = ", ".join(dict.fromkeys(candidate.strategy.name for candidate in candidates))
    display.say(f"Choosing the strategy: a race of {names}, for at most about {max(left, 0):.0f} s.")
    try:
        results = race.run(candidates, steps, display)
    except StoppedError as error:
        problem = Problem("a strategy that was chosen", "nothing that could be kept", "Start the training again.")
        raise StoppedError("Stopped while the strategy was chosen.", [problem], error.exit_code) from None
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
    return _at(recipe, winner).replace({"training.minutes": rest, "choice": choice.model_dump(mode="json")})


def _of(recipe: Recipe, spec: Spec) -> Recipe:
    return recipe.replace({"strategy": spec.model_dump(mode="json")})


def _at(recipe: Recipe, candidate: Candidate) -> Recipe:
    return _of(recipe, candidate.strategy).replace({"optimizer.learning_rate": candidate.learning_rate})


def _rates(recipe: Recipe, spec: Spec) -> list[float]:
    """The learning rates that a strategy is tried at."""
    if recipe.optimizer.learning_rate is not None:
        return [recipe.optimizer.learning_rate]
    own = learning_rate(recipe.optimizer, STRATEGIES[spec.name].make.default_learning_rate)
    return [float(f"{own * factor:.3g}") for factor in FACTORS]


def _candidates(recipe: Recipe, strategies: Sequence[Spec], layers: Sequence[LayerEvidence]) -> list[Candidate]:
    """Strategies at learning rates, the preferred first: each strategy at its own rate, then each at the next."""
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
    there = [result for result in results if result.predictions is not None]
    if not there:
        why = "no trial came to an end" if results else "there was no time for a race"
        return candidates[0], f"{why}; it did best on other data."
    last = [result for result in there if result.trial.round == there[0].trial.round]
    best, *rest = last
    as_good = [best, *(result for result in rest if _behind(result, best) <= (result.trial.standard_error or 0.0))]
    winner = min(as_good, key=lambda result: candidates.index(result.candidate))
    told = f"{metric} {winner.trial.score:.4f} after {best.trial.steps:,} steps on {best.trial.rows:,} rows"
    others = ", ".join(f"{_named(other.candidate)} {other.trial.score:.4f}" for other in last if other is not winner)
    if winner is not best:
        return winner.candidate, f"{told}; {others}, which is no more than one standard error better."
    return winner.candidate, f"{told}; {others}." if others else f"{told}, the only one of its round."


def _behind(result: Result, best: Result) -> float:
    return abs((best.trial.score or 0.0) - (result.trial.score or 0.0))


def _named(candidate: Candidate) -> str:
    return f"{candidate.strategy.name} at {candidate.learning_rate:g}"
