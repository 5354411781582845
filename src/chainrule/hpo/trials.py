"""The trials of a search: short trainings that share what they can, scored on the way and at their end."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.core.recipe import Recipe
from chainrule.core.task import Task
from chainrule.errors import UserError
from chainrule.hpo.optuna_study import Settings, quietly, rungs
from chainrule.hpo.short import HELD_OUT, begin_short
from chainrule.hpo.space import RATE, Space, changed
from chainrule.models.adapters import plain_model
from chainrule.models.inspect import count_parameters
from chainrule.strategies import make_strategy, refuse_misfit, reserved_tokens
from chainrule.system.memory import is_shortage, return_freed
from chainrule.system.progress import Quiet
from chainrule.system.stop import StopRequest
from chainrule.tasks.prepare import Prepared
from chainrule.tasks.suited import task_of
from chainrule.training.completion import rate_of, with_known, with_parts
from chainrule.training.divergence import DivergenceError
from chainrule.training.job import planned_steps, trained_count
from chainrule.training.run import prepare_rows
from chainrule.training.validation import validate

RUNNING, COMPLETE, PRUNED, FAILED = "RUNNING", "COMPLETE", "PRUNED", "FAIL"


class StoppedTrialError(Exception):
    """Somebody wants an end."""


@dataclass(frozen=True)
class Scored:
    """What came of a trial that was made to its end.

    Attributes:
        values: what the study weighs: the rank of the metric, then milliseconds a row and megabytes if asked.
        tie: what settles equal ranks; the larger, the better.
    """

    values: list[float]
    metric: float
    steps: int
    tie: float


class Trials:
    """Runs trials of one recipe.

    Args:
        recipe: what all trials have in common.
        source: what to read instead of `recipe.data.source`.
    """

    def __init__(self, recipe: Recipe, source: Any, space: Space, settings: Settings) -> None:
        self.recipe, self.source, self.space, self.settings = recipe, source, space, settings
        self.task: Task = task_of(recipe)
        self.rows: dict[str, tuple[Prepared, Recipe]] = {}
        self.most, self.share = 1, 1.0  # steps of a trial of the recipe as it is; of the whole training, for all trials

    @property
    def metric(self) -> str:
        """That trials are ranked by."""
        return self.task.ranking_metric(self.recipe.training.early_stopping_metric)

    def recipe_of(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with the values of a trial."""
        parameter = self.space.parameters.get(RATE)
        return changed(self.recipe, values, rate_of if parameter is not None and parameter.times_default else None)

    def prepared(self, recipe: Recipe) -> tuple[Prepared, Recipe]:
        """Rows for a recipe, read and encoded once for all trials that read them alike; and the recipe, completed.

        Raises:
            UserError: the recipe cannot be trained.
        """
        task = task_of(recipe)
        refuse_misfit(recipe.strategy.name, task)
        reserved = reserved_tokens(make_strategy(recipe.strategy))
        reading = (recipe.model, recipe.task, recipe.structure.add_tokens, reserved)
        key = repr(reading)
        if key not in self.rows:
            prepared, known = prepare_rows(recipe, self.source, Quiet())
            chosen = np.random.default_rng([recipe.seed, 2]).permutation(len(prepared.encoded["validation"]))[:HELD_OUT]
            held_out = prepared.encoded["validation"].take(np.sort(chosen))
            self.rows[key] = replace(prepared, encoded=prepared.encoded | {"validation": held_out}), known
        prepared, known = self.rows[key]
        same = {"training.threads": known.training.threads, "training.deterministic": known.training.deterministic}
        return prepared, with_known(with_parts(recipe, task), prepared).replace(same)

    def run(self, trial: Any, request: StopRequest, note: Callable[[str], None]) -> tuple[str, list[float] | None]:
        """One trial.

        Args:
            trial: of Optuna, just asked for.
            note: takes a line on how it goes.

        Returns:
            Its state, and its values where it has come to its end.

        Raises:
            StoppedTrialError: somebody wants an end.
        """
        began, told = time.perf_counter(), dict[str, Any]()
        try:
            with quietly():
                values = self.space.suggest(trial)
            told["values"] = values
            with freed():
                scored = self._train(self.recipe_of(values), trial, request)
        except (UserError, DivergenceError) as error:
            told["note"] = str(error).splitlines()[0]
            state, scores = FAILED, None
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            told["note"] = "not enough memory"
            state, scores = FAILED, None
        else:
            told |= {"metric": scored.metric, "steps": scored.steps, "tie": float(scored.tie)}
            state, scores = (COMPLETE, scored.values) if scored.values else (PRUNED, None)
        told["seconds"] = round(time.perf_counter() - began, 3)
        for key, value in told.items():
            trial.set_user_attr(key, value)
        note(f"{state.lower()}" + (f" {self.metric} {told['metric']:.4f}" if "metric" in told else f": {told['note']}"))
        return state, scores

    def _train(self, recipe: Recipe, trial: Any, request: StopRequest) -> Scored:
        """Train and score after each rung; without values where the pruner ends it."""
        prepared, known = self.prepared(recipe)
        whole = planned_steps(known, len(prepared.encoded["train"]))
        last = max(1, math.ceil(self.share * whole))
        short = begin_short(known, prepared, last)
        numbers = [self.most] if self.settings.is_multiple else rungs(self.most, self.settings.pruner)
        scoring = {math.ceil(last * number / self.most): number for number in numbers}  # larger batches, fewer steps
        metrics: dict[str, float] = {}
        rank = (-math.inf, -math.inf)
        took, place = 0.0, 0
        for step in short.steps:
            place = step.step
            if request.signal is not None:
                raise StoppedTrialError
            if place in scoring:
                began = time.perf_counter()
                metrics = validate(short.job, short.recipe, place)[1]
                took = time.perf_counter() - began
                rank = self.task.rank(metrics, recipe.training.early_stopping_metric)
                if not self.settings.is_multiple:
                    trial.report(rank[0], scoring[place])
                if place < last and not self.settings.is_multiple and self._ends(trial):
                    return Scored([], metrics[self.metric], place, rank[1])
        values = [rank[0]]
        if self.settings.is_multiple:
            values += [1000 * took / len(short.job.validation), self._megabytes(short.job, short.recipe)]
        return Scored([float(value) for value in values], metrics[self.metric], place, rank[1])

    def _ends(self, trial: Any) -> bool:
        with quietly():
            return bool(trial.should_prune())

    def _megabytes(self, job: Any, recipe: Recipe) -> float:
        """Of the weights that will be saved: the adapters alone where they are kept apart."""
        apart = getattr(job.strategy.options, "merge", None) is False
        numbers = (
            trained_count(job, recipe, planned_steps(recipe, len(job.train)))
            if apart
            else count_parameters(plain_model(job.model))
        )
        return 4e-6 * numbers


@contextmanager
def freed() -> Iterator[None]:
    """Give back afterwards what a trial has taken."""
    try:
        yield
    finally:
        gc.collect()
        return_freed()
