"""A race: candidates are trained for a short while on some of the rows, and those that do best go on, longer.

Jamieson and Talwalkar (2016), Non-stochastic Best Arm Identification and Hyperparameter Optimization (successive
halving): each round takes the same time in all, half of the candidates stay, and each of them gets twice as much.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.core.choice import Trial
from chainrule.core.recipe import Recipe, Spec
from chainrule.core.task import Predictions, Task
from chainrule.data.encode import Encoded, joined
from chainrule.errors import DivergedError, ShortageError
from chainrule.system.progress import Display, Quiet
from chainrule.tasks import find_task
from chainrule.tasks.prepare import Prepared
from chainrule.training.checkpoint import Keeper
from chainrule.training.run import plan
from chainrule.training.trainer import train

FEW = 512  # rows up to which every row is held out once; above, the validation rows are enough
FOLDS = 4
HELD_OUT = 512  # validation rows that a trial is scored on, at most
RESAMPLES = 200
FEWEST_STEPS = 20  # a shorter trial tells nothing
OFF: dict[str, Any] = {
    "training.minutes": None,
    "training.patience": None,
    "training.averaging": None,
    "training.track": [],
    "training.profile": False,
    "training.watch_gradients": False,
}


@dataclass(frozen=True)
class Candidate:
    """A strategy with a learning rate; None for the strategy's own."""

    strategy: Spec
    learning_rate: float | None


@dataclass(frozen=True)
class Portion:
    """Which rows a trial learns from and which it is scored on; several where each row is held out once."""

    train: Encoded
    held_out: Encoded


@dataclass(frozen=True)
class Result:
    """What came of a candidate in one round.

    Attributes:
        predictions: of all rows that were held out; None where training failed.
    """

    candidate: Candidate
    trial: Trial
    predictions: Predictions | None


class Race:
    """Trials of candidates on the rows of one training.

    Args:
        recipe: of the training, number format and size of micro-batches resolved.
        seconds: that all trials together may take.
        step_seconds: of one step of a training of every parameter.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, seconds: float, step_seconds: float) -> None:
        self.recipe, self.prepared = recipe, prepared
        self.seconds, self.step_seconds = seconds, step_seconds
        self.task: Task = find_task(recipe.task.name)
        train, validation = (prepared.encoded[name] for name in ("train", "validation"))
        self.is_small = len(train) + len(validation) <= FEW
        self.rows = joined([train, validation]) if self.is_small else train
        if self.is_small:
            self.held_out = self.rows
        else:
            chosen = np.random.default_rng([recipe.seed, 2]).permutation(len(validation))[:HELD_OUT]
            self.held_out = validation.take(np.sort(chosen))

    @property
    def trainings(self) -> int:
        """Of one trial."""
        return FOLDS if self.is_small else 1

    def steps(self, candidates: int, seconds: float, planned: int) -> int:
        """How many steps each training of a round with so many candidates can have."""
        held = len(self.held_out) / self.trainings / self.recipe.training.batch_size / 3  # a step is three forwards
        each = seconds / (candidates * self.trainings) / self.step_seconds - held
        return min(planned, math.floor(each))

    def run(self, candidates: Sequence[Candidate], planned: int, display: Display) -> list[Result]:
        """Round after round until one candidate is left, or the steps of the whole training were made.

        Args:
            candidates: those to be preferred first, should all else be equal.
            planned: steps of the whole training.

        Returns:
            The results of the last round, the best first; those of the rounds before follow. Empty where there is no
            time for a race.
        """
        began, results, steps = time.perf_counter(), list[Result](), 0
        left = self._entrants(candidates, planned)
        while len(left) > 1 and steps < planned:
            remaining = self.seconds - (time.perf_counter() - began)
            before, steps = steps, self.steps(len(left), remaining / _rounds(len(left)), planned)
            if steps <= before:  # the clock has run on
                break
            done = self._round(left, 1 + (results[0].trial.round if results else 0), steps, display)
            results = [*done, *results]
            left = [result.candidate for result in done[: math.ceil(len(done) / 2)] if result.predictions is not None]
        return results

    def _entrants(self, candidates: Sequence[Candidate], planned: int) -> list[Candidate]:
        """As many, the preferred first, as there is time to try."""
        for count in range(len(candidates), 1, -1):
            if self.steps(count, self.seconds / _rounds(count), planned) >= min(FEWEST_STEPS, planned):
                return list(candidates[:count])
        return []

    def _round(self, candidates: Sequence[Candidate], number: int, steps: int, display: Display) -> list[Result]:
        """Every candidate once, the best first."""
        results = []
        with display.bar(f"trying strategies, round {number}", len(candidates)) as bar:
            for candidate in candidates:
                result = self._try(candidate, number, steps)
                results.append(result)
                score = "failed" if result.trial.score is None else f"{self.metric} {result.trial.score:.4f}"
                bar.advance(1, f"{candidate.strategy.name} {score}")
        ranked = sorted(results, key=self._rank, reverse=True)
        return [replace(result, trial=self._beside(result, ranked[0])) for result in ranked]

    @property
    def metric(self) -> str:
        """That trials are ranked by."""
        return self.task.ranking_metric(self.recipe.training.early_stopping_metric)

    @property
    def targets(self) -> np.ndarray:
        """Of the rows that are held out."""
        if self.held_out.targets is None:
            raise ValueError("rows that are held out need targets")
        return self.held_out.targets

    def _rank(self, result: Result) -> tuple[float, float]:
        if result.predictions is None:
            return (-math.inf, -math.inf)
        return self._score(self.targets, result.predictions)

    def _score(self, targets: np.ndarray, predictions: Predictions) -> tuple[float, float]:
        return self.task.rank(self.task.measure(targets, predictions), self.recipe.training.early_stopping_metric)

    def _beside(self, result: Result, best: Result) -> Trial:
        """The trial with the standard error of its difference to the best, from resampled rows."""
        if result.predictions is None or best.predictions is None:
            return result.trial
        draw, differences = np.random.default_rng(0), []
        for _ in range(RESAMPLES if result is not best else 0):
            rows = draw.integers(len(self.targets), size=len(self.targets))
            ours, theirs = (
                self._score(self.targets[rows], _of_rows(each.predictions, rows))[0] for each in (result, best)
            )
            differences.append(theirs - ours)
        return result.trial.model_copy(
            update={"standard_error": round(float(np.std(differences)), 5) if differences else 0.0}
        )

    def _try(self, candidate: Candidate, number: int, steps: int) -> Result:
        began, parts, trained, rate = time.perf_counter(), list[Predictions](), 0, candidate.learning_rate
        note, portions = "", self._portions(steps)
        for portion in portions:
            try:
                predictions, trained, rate = self._train(candidate, portion, steps)
            except (DivergedError, ShortageError) as error:
                note = str(error).splitlines()[0]
                break
            parts.append(predictions)
        whole = None if note else _together(parts, self._order())
        trial = Trial(
            strategy=candidate.strategy.name,
            options=candidate.strategy.options,
            learning_rate=rate or 0.0,
            round=number,
            steps=steps,
            rows=len(portions[0].train),
            score=None if whole is None else round(self.task.measure(self.targets, whole)[self.metric], 5),
            seconds=round(time.perf_counter() - began, 2),
            trained_parameters=trained,
            note=note,
        )
        return Result(candidate, trial, whole)

    def _train(self, candidate: Candidate, portion: Portion, steps: int) -> tuple[Predictions, int, float]:
        """Train one candidate; what it says of the rows that were held out, and what it had trained at which rate."""
        changes = {
            "strategy": candidate.strategy.model_dump(mode="json"),
            "optimizer.learning_rate": candidate.learning_rate,
            "training.steps": steps,
            "training.evaluate_every_steps": steps,
        }
        encoded = {"train": portion.train, "validation": portion.held_out}
        job, recipe = plan(self.recipe.replace(OFF | changes), replace(self.prepared, encoded=encoded), Quiet())
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(job, recipe, _forget, Quiet(), Keeper(Path(folder), math.inf, 1))
        return outcome.predictions, outcome.trained_parameters, recipe.optimizer.learning_rate or 0.0

    def _portions(self, steps: int) -> list[Portion]:
        """As many rows as the steps can see once, drawn by the seed."""
        order = np.random.default_rng([self.recipe.seed, 3]).permutation(len(self.rows))
        if self.is_small:
            folds = [np.sort(order[start::FOLDS]) for start in range(FOLDS)]
            rest = [np.setdiff1d(order, fold) for fold in folds]
            return [Portion(self.rows.take(a), self.rows.take(b)) for a, b in zip(rest, folds, strict=True)]
        count = min(len(order), steps * self.recipe.training.batch_size)
        return [Portion(self.rows.take(np.sort(order[:count])), self.held_out)]

    def _order(self) -> np.ndarray:
        """The rows that are held out, as the portions follow each other."""
        if not self.is_small:
            return np.arange(len(self.held_out))
        order = np.random.default_rng([self.recipe.seed, 3]).permutation(len(self.rows))
        return np.concatenate([np.sort(order[start::FOLDS]) for start in range(FOLDS)])


def _rounds(candidates: int) -> int:
    """Until one is left."""
    return math.ceil(math.log2(candidates))


def _forget(event: dict[str, object]) -> None:
    """The events of a trial are not kept."""


def _together(parts: Sequence[Predictions], order: np.ndarray) -> Predictions:
    """The predictions of several portions in the order of the rows."""
    back = np.argsort(order)

    def put(of: Callable[[Predictions], np.ndarray]) -> np.ndarray:
        return np.concatenate([of(part) for part in parts])[back]

    losses = [part.losses for part in parts if part.losses is not None]
    return Predictions(
        put(lambda part: part.values), put(lambda part: part.scores), np.concatenate(losses)[back] if losses else None
    )


def _of_rows(predictions: Predictions | None, rows: np.ndarray) -> Predictions:
    if predictions is None:
        raise ValueError("a trial that failed has no predictions")
    losses = None if predictions.losses is None else predictions.losses[rows]
    return Predictions(predictions.values[rows], predictions.scores[rows], losses)
