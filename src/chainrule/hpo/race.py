"""A race: candidates are trained for a short while on some of the rows, and those that do best go on, longer.

Jamieson and Talwalkar (2016), Non-stochastic Best Arm Identification and Hyperparameter Optimization (successive
halving): each round takes the same time in all, half of the candidates stay, and each of them gets twice as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.core.choice import Trial
from chainrule.core.recipe import Recipe, Spec
from chainrule.core.task import Predictions, Task
from chainrule.data.encode import Encoded, joined
from chainrule.data.load import Split
from chainrule.data.split import cut_folds, strata_of
from chainrule.data.targets import decode_targets
from chainrule.errors import Problem, ShortageError, StoppedError
from chainrule.hpo.short import FEWEST_STEPS, HELD_OUT, Pace, begin_short
from chainrule.system.progress import Display
from chainrule.system.stop import StopRequest, stop_requests, who_stopped
from chainrule.tasks.prepare import Prepared
from chainrule.tasks.suited import task_of
from chainrule.training.divergence import DivergenceError
from chainrule.training.job import trained_count
from chainrule.training.validation import validate

FEW = 512  # training rows up to which every row is held out once, unless there are enough validation rows
ENOUGH = 128  # validation rows to score trials on
FOLDS = 4
RESAMPLES = 200
PATIENCE = 1.2  # times the seconds there are, after which trials are broken off
ON_FEATURES = "head"
EARLY = 0.25  # of the steps of a whole training
FOR_HEADS = 0.25  # of the seconds, that heads may take to be trained to their end


@dataclass(frozen=True)
class Candidate:
    """A strategy with a learning rate."""

    strategy: Spec
    learning_rate: float


@dataclass(frozen=True)
class Portion:
    """What a training learns from and what it is scored on."""

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


class NoTimeError(Exception):
    """A trial was broken off as the time is over."""


class Race:
    """Trials of candidates on the rows of one training.

    Args:
        recipe: of the training, its number format resolved.
        seconds: that all trials together may take.
        pace: of the slowest candidate, about.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, seconds: float, pace: Pace) -> None:
        self.recipe, self.prepared, self.seconds, self.pace = recipe, prepared, seconds, pace
        self.task: Task = task_of(recipe)
        train, validation = (prepared.encoded[name] for name in ("train", "validation"))
        self.folds = self._folds(len(train), len(validation))
        self.rows: Encoded = joined([train, validation]) if self.folds else train
        if self.folds:
            self.held_out = self.rows.take(np.concatenate(self.folds))
        else:
            chosen = np.random.default_rng([recipe.seed, 2]).permutation(len(validation))[:HELD_OUT]
            self.held_out = validation.take(np.sort(chosen))

    def _folds(self, train: int, validation: int) -> list[np.ndarray]:
        """Positions of the rows that are held out together; empty where the validation rows are enough."""
        if train > FEW or validation >= ENOUGH:
            return []
        dataset = self.prepared.dataset
        pooled = Split.joined([dataset.splits[name] for name in ("train", "validation")])
        strata = strata_of(decode_targets(pooled.targets, self.task.target.kind, dataset.labels))
        fold_of = cut_folds(pooled.hashes, strata, FOLDS, self.recipe.seed)
        return [found for fold in range(FOLDS) if len(found := np.flatnonzero(fold_of == fold))]

    @property
    def trainings(self) -> int:
        """Of one trial."""
        return max(1, len(self.folds))

    @property
    def metric(self) -> str:
        """That trials are ranked by."""
        return self.task.ranking_metric(self.recipe.training.early_stopping_metric)

    @property
    def targets(self) -> Any:
        """Of the rows that are held out."""
        if self.held_out.targets is None:
            raise ValueError("rows that are held out need targets")
        return self.held_out.targets

    def steps(self, candidates: int, seconds: float, planned: int) -> int:
        """How many steps each training of a round with so many candidates can have."""
        scoring = len(self.held_out) / self.trainings / self.recipe.training.batch_size / 3  # a step is three forwards
        each = seconds / (candidates * self.trainings) - self.pace.load
        return min(planned, math.floor(each / self.pace.step - scoring))

    def run(self, candidates: Sequence[Candidate], planned: int, display: Display) -> list[Result]:
        """Round after round until one candidate is left, or the steps of the whole training were made.

        Args:
            candidates: those to be preferred first, should all else be equal.
            planned: steps of the whole training.

        Returns:
            The results of the last round, the best first; those of the rounds before follow. Empty where there is no
            time for a race.

        Raises:
            StoppedError: Ctrl-C or SIGTERM.
        """
        began, results, steps = time.perf_counter(), list[Result](), 0
        heads, left = self._entrants(candidates, planned)
        until = began + PATIENCE * self.seconds
        with stop_requests(display.say) as request:
            ended = self._tried(heads, 1, Course(self, planned, until, request), display) if left else []
            while left and len(left) + len(heads) > 1 and steps < planned:
                remaining = self.seconds - (time.perf_counter() - began)
                rounds = range(_rounds(len(left)), 0, -1)
                more = [self.steps(len(left), remaining / count, planned) for count in rounds]
                before, steps = steps, next((count for count in more if count > steps), 0)
                if steps <= before:  # the clock has run on
                    break
                number = 1 + (results[0].trial.round if results else 0)
                done = self._tried(left, number, Course(self, steps, until, request), display)
                results = [*self._ranked([*done, *(_again(result, number) for result in ended)]), *results]
                stay = self._stay(self._ranked(done), candidates)
                if len(stay) == 1 and (results[0].candidate in stay or len(left) == 1):  # nothing more to be seen
                    break
                left = stay
        return results or [result for result in ended if result.predictions is None]  # heads alone are no race

    def _entrants(self, candidates: Sequence[Candidate], planned: int) -> tuple[list[Candidate], list[Candidate]]:
        """Heads that are trained to their end, and as many of the others, the preferred first, as there is time for."""
        heads = [candidate for candidate in candidates if self.cheap(candidate)]
        others = [candidate for candidate in candidates if candidate not in heads]
        heads, others = (heads, others) if others else ([], heads)
        left = self.seconds - self._of_heads(len(heads))
        for count in range(len(others) if len(self.folds) != 1 else 0, 0, -1):  # with one fold all rows are alike
            if count + len(heads) > 1 and self.steps(count, left / _rounds(count), planned) >= min(
                FEWEST_STEPS, planned
            ):
                return heads, others[:count]
        return [], []

    def cheap(self, candidate: Candidate) -> bool:
        """Whether it can be trained to its end: a head, as its features are computed once, where that is soon done."""
        soon = self.recipe.training.accelerate and self._of_heads(2) <= FOR_HEADS * self.seconds
        return candidate.strategy.name == ON_FEATURES and (len(self.rows) <= FEW or soon)

    def _of_heads(self, count: int) -> float:
        """Seconds until so many heads are trained: one forward of each row, a third of the time of a step with it."""
        features = self.pace.step * len(self.rows) / self.recipe.training.batch_size / 3
        return self.trainings * (count * self.pace.load + features) if count else 0.0

    def _stay(self, ranked: Sequence[Result], candidates: Sequence[Candidate]) -> list[Candidate]:
        """The better half; of those within a standard error of the best, the preferred."""
        there = [result for result in ranked if result.predictions is not None]
        as_good = sorted((r for r in there if as_good_as(r, there[0])), key=lambda r: candidates.index(r.candidate))
        others = [result for result in there if result not in as_good]
        return [result.candidate for result in (*as_good, *others)[: math.ceil(len(ranked) / 2)]]

    def _tried(self, left: Sequence[Candidate], number: int, course: Course, display: Display) -> list[Result]:
        """Every candidate once."""
        results = []
        with display.bar(f"trying strategies, round {number}", len(left)) as bar:
            for candidate in left:
                result = self._try(candidate, number, course)
                results.append(result)
                score = "failed" if result.trial.score is None else f"{self.metric} {result.trial.score:.4f}"
                bar.advance(1, f"{candidate.strategy.name} {score}")
        return results

    def _ranked(self, results: Sequence[Result]) -> list[Result]:
        """The best first, each with the standard error of its difference to the best."""
        ranked = sorted(results, key=self._rank, reverse=True)
        return [replace(result, trial=self._beside(result, ranked[0])) for result in ranked]

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
        draw, differences, targets = np.random.default_rng(0), [], self.targets
        for _ in range(RESAMPLES if result is not best else 0):
            rows = draw.integers(len(targets), size=len(targets))
            said = result.predictions.take(rows), best.predictions.take(rows)
            ours, theirs = (self._score(targets[rows], each)[0] for each in said)
            differences.append(theirs - ours)
        return result.trial.model_copy(
            update={"standard_error": round(float(np.std(differences)), 5) if differences else 0.0}
        )

    def _try(self, candidate: Candidate, number: int, course: Course) -> Result:
        began, parts, trained, note = time.perf_counter(), list[Predictions](), 0, ""
        portions = self.portions(course.steps)
        try:
            for portion in portions:
                predictions, trained = course.train(candidate, portion)
                parts.append(predictions)
        except (DivergenceError, ShortageError, NoTimeError) as error:
            note = str(error).splitlines()[0]
        whole = None if note else Predictions.joined(parts)
        trial = Trial(
            strategy=candidate.strategy.name,
            options=candidate.strategy.options,
            learning_rate=candidate.learning_rate,
            round=number,
            steps=course.steps,
            rows=len(portions[0].train),
            score=None if whole is None else round(self.task.measure(self.targets, whole)[self.metric], 5),
            seconds=round(time.perf_counter() - began, 2),
            trained_parameters=trained,
            note=note,
        )
        return Result(candidate, trial, whole)

    def portions(self, steps: int) -> list[Portion]:
        """What each training of a trial learns from: as many rows as the steps can see once, drawn by the seed."""
        if self.folds:
            every = np.arange(len(self.rows))
            rest = [np.setdiff1d(every, fold) for fold in self.folds]
            return [Portion(*map(self.rows.take, places)) for places in zip(rest, self.folds, strict=True)]
        order = np.random.default_rng([self.recipe.seed, 3]).permutation(len(self.rows))
        count = min(len(order), steps * self.recipe.training.batch_size)
        return [Portion(self.rows.take(np.sort(order[:count])), self.held_out)]


@dataclass(frozen=True)
class Course:
    """How each training of a round goes.

    Attributes:
        steps: of each.
        deadline: reading of `time.perf_counter` at which trainings are broken off.
        request: whether somebody wants an end.
    """

    race: Race
    steps: int
    deadline: float
    request: StopRequest

    def train(self, candidate: Candidate, portion: Portion) -> tuple[Predictions, int]:
        """Train one candidate; what it says of the rows that are held out, and how many numbers it has trained.

        Raises:
            DivergenceError: a loss is not a finite number.
            ShortageError: there is not enough memory.
            NoTimeError: the time is over.
            StoppedError: Ctrl-C or SIGTERM.
        """
        changes = {
            "strategy": candidate.strategy.model_dump(mode="json"),
            "optimizer.learning_rate": candidate.learning_rate,
        }
        encoded = {"train": portion.train, "validation": portion.held_out}
        prepared = replace(self.race.prepared, encoded=encoded)
        short = begin_short(self.race.recipe.replace(changes), prepared, self.steps)
        for _ in short.steps:
            if self.request.signal is not None:
                name, code = who_stopped(self.request.signal)
                problem = Problem("a strategy that was chosen", "nothing that could be kept", "Start it again.")
                raise StoppedError(f"Stopped by {name} while the strategy was chosen.", [problem], code)
            if time.perf_counter() > self.deadline:
                raise NoTimeError("broken off: the time was over")
        said = validate(short.job, short.recipe, self.steps)[0]
        return said, trained_count(short.job, short.recipe, self.steps)


def as_good_as(result: Result, best: Result) -> bool:
    """Whether it is within a standard error of the best; within two, where it had few of the steps that that one had.

    What a few steps have begun can still grow; a head that was trained to its end stays what it is.
    """
    behind = abs((best.trial.score or 0.0) - (result.trial.score or 0.0))
    return behind <= (2 if is_early(result, best) else 1) * (result.trial.standard_error or 0.0)


def is_early(result: Result, best: Result) -> bool:
    """Whether it had few of the steps that the best had."""
    return result.trial.steps < EARLY * best.trial.steps


def _again(result: Result, number: int) -> Result:
    """What was trained to its end, as it takes part in a later round."""
    return replace(result, trial=result.trial.model_copy(update={"round": number}))


def _rounds(candidates: int) -> int:
    """Until one of so many is left; one at least."""
    return max(1, math.ceil(math.log2(candidates)))
