"""Validation while training goes on, and the best weights so far."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Recipe
from chainrule.core.task import Predictions
from chainrule.data.encode import Encoded
from chainrule.inference.predict import said_of
from chainrule.kernels.adamw import catch_up
from chainrule.models.adapters import has_adapters, without_adapters
from chainrule.training.averaging import averages_in_place
from chainrule.training.checkpoint import Standing
from chainrule.training.divergence import DivergenceError
from chainrule.training.events import Sink
from chainrule.training.job import Job, forward_for, planned_steps, steps_per_epoch, trained_names


def validate_untuned(job: Job, recipe: Recipe, record: Sink) -> Predictions:
    """The validation of the model as it is before step one."""
    began = time.perf_counter()
    with without_adapters(job.model) if has_adapters(job.model) else nullcontext(job.model) as base:
        predictions, metrics = validate(replace(job, forward=replace(job.forward, model=base)), recipe, 0)
    seconds = round(time.perf_counter() - began, 3)
    record({"event": "evaluation", "step": 0, "epoch": 0.0, "metrics": metrics, "best": False, "seconds": seconds})
    return predictions


def validate(job: Job, recipe: Recipe, step: int) -> tuple[Predictions, dict[str, float]]:
    """What the model says of the validation rows, and every metric of it.

    Args:
        step: the steps that were made.

    Raises:
        DivergenceError: a loss is not a finite number.
    """
    predictions = said_of(forward_for(job, recipe), job.validation, job.task)
    if predictions.losses is None or not np.isfinite(predictions.losses).all():
        raise DivergenceError(f"a validation loss that is not a number after step {step}", step)
    return predictions, job.task.measure(_targets(job.validation), predictions)


def evaluate(job: Job, recipe: Recipe, standing: Standing, record: Sink) -> None:
    """Validate, record it, and keep a copy of the trained weights where they are the best so far.

    Where weights are averaged, it is the averages that are validated and kept. Of several processes the first one
    validates and keeps; the others learn how it ranks.

    Raises:
        DivergenceError: a loss is not a finite number.
    """
    found = job.world.told(lambda: _evaluated(job, recipe, standing, record))
    if "diverged" in found:
        raise DivergenceError(found["diverged"], standing.progress.step)
    first, second = found["rank"]
    standing.best.ranks.append((first, second))
    if not job.world.first and found["better"]:
        best = standing.best
        best.step, best.rank, best.metrics = standing.progress.step, (first, second), found["metrics"]


def _evaluated(job: Job, recipe: Recipe, standing: Standing, record: Sink) -> dict[str, Any]:
    """How the weights rank now; or, beside `diverged`, that they have diverged."""
    began = time.perf_counter()
    best, step, optimizer = standing.best, standing.progress.step, standing.progress.optimizer
    if optimizer is None:
        raise ValueError("an evaluation is of a step that was made")
    with averages_in_place(optimizer):
        try:
            predictions, metrics = validate(job, recipe, step)
        except DivergenceError as error:
            return {"diverged": str(error)}
        rank = job.task.rank(metrics, recipe.training.early_stopping_metric)
        better = rank > best.rank
        if better:
            best.step, best.rank, best.metrics, best.predictions = step, rank, metrics, predictions
            any_phase = trained_names(job, recipe, planned_steps(recipe, len(job.train)))
            best.weights = trained_weights(job.model, any_phase)
    record(
        {
            "event": "evaluation",
            "step": step,
            "epoch": round(step / steps_per_epoch(recipe, len(job.train)), 4),
            "metrics": metrics,
            "best": better,
            "seconds": round(time.perf_counter() - began, 3),
        }
    )
    return {"rank": list(rank), "better": better, "metrics": metrics}


def waits(ranks: Sequence[tuple[float, float]], min_delta: float) -> list[int]:
    """After each evaluation, how many there had been since one that was better than all before it.

    Args:
        ranks: of the evaluations, in their order.
        min_delta: a better one exceeds the last better one's first number by more than this; where it is 0, the second
            number settles a tie.
    """
    best, found = (-float("inf"), -float("inf")), [0]
    for rank in ranks:
        better = rank[0] > best[0] + min_delta if min_delta else rank > best
        best = rank if better else best
        found.append(0 if better else found[-1] + 1)
    return found[1:]


def trained_weights(model: Any, names: Collection[str]) -> dict[str, torch.Tensor]:
    """A copy of these parameters; rows that are behind catch up first.

    Args:
        names: what any phase trains. What only a later phase trains must go back with the rest, too.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if name in names}
    for parameter in trained.values():
        catch_up(parameter)
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def put_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give a model's parameters, by name, these values."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(value)


def _targets(encoded: Encoded) -> Any:
    if encoded.targets is None:
        raise ValueError("training and validation rows need targets")
    return encoded.targets
