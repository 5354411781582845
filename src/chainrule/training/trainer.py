"""The driver of the loop: validates, records, keeps the best weights, stops."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Recipe
from chainrule.core.task import Predictions, Task
from chainrule.data.encode import Encoded
from chainrule.errors import DivergedError, Problem
from chainrule.inference.predict import predict_encoded
from chainrule.kernels.adamw import catch_up
from chainrule.models.accelerate import keep_half_gradients, narrow_frozen, widen_frozen
from chainrule.models.heads import settle
from chainrule.models.inspect import count_parameters
from chainrule.models.trunk import frozen_depth
from chainrule.strategies.base import Phase
from chainrule.system.memory import return_freed
from chainrule.system.progress import Bar, Display
from chainrule.training.events import Sink
from chainrule.training.job import (
    Job,
    batch_loader,
    forward_for,
    optimizer_maker,
    piece_maker,
    planned_batches,
    planned_steps,
    steps_per_epoch,
    trained_names,
)
from chainrule.training.loop import Step, Stepping, training_steps
from chainrule.training.profile import Profile, profiled
from chainrule.training.schedules import make_schedule
from chainrule.training.trunk import with_states


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: from the first batch to the last optimizer step, validation excluded; the frozen layers' one run
            over all rows counts where it was made.
        metrics: on validation, of the weights that are kept.
        predictions: on validation, of the weights that are kept.
        model: what is to be saved.
        untuned: on validation, of the model before step one, where the task compares with it.
    """

    steps: int
    seconds: float
    trained_parameters: int
    best_step: int
    metrics: dict[str, float]
    predictions: Predictions
    stopped: str
    model: Any
    untuned: Predictions | None


@dataclass
class _Best:
    """The best weights so far, a copy of the trained parameters alone."""

    step: int = 0
    rank: tuple[float, float] = (-math.inf, -math.inf)
    metrics: dict[str, float] = field(default_factory=dict)
    predictions: Predictions | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    worse_in_a_row: int = 0


def train(job: Job, recipe: Recipe, record: Sink, display: Display) -> Outcome:
    """Run the loop to its end and leave the best weights in `job.model`.

    Args:
        recipe: resolved.
        record: takes every step and evaluation as it happens.

    Raises:
        DivergedError: the loss or the gradient is not a finite number.
    """
    total = planned_steps(recipe, len(job.train))
    if recipe.training.accelerate:
        _settle_formats(job, recipe, total)
    job, trunk_seconds = _above_frozen(job, recipe, total, display)
    best = _Best()
    record({"event": "start", "step": 0, "steps": total, "rows": len(job.train)})
    untuned = _untuned(job, recipe, record) if job.task.baseline == "untuned" else None
    done, seconds, stopped = 0, trunk_seconds, "all steps done"
    every = recipe.training.evaluate_every_steps or steps_per_epoch(recipe, len(job.train))
    with display.bar("training", total) as bar:
        for step in _steps(job, recipe, total, record, display):
            done, seconds = step.step, seconds + step.seconds
            _record_step(step, recipe, len(job.train), record, bar, best, job.task)
            if step.step % every == 0 or step.step == total:
                _evaluate(job, recipe, step.step, record, best)
                patience = recipe.training.patience
                if patience is not None and best.worse_in_a_row >= patience and step.step < total:
                    measure = "loss" if job.task.best_by_loss else job.task.primary_metric
                    stopped = f"no better validation {measure} in {patience} evaluations"
                    break
    trained = count_parameters(job.model, trainable_only=True)
    _restore(job.model, best.weights)
    widen_frozen(job.model)
    model = job.strategy.finish(job.model)
    settle(model)
    if best.predictions is None:
        raise ValueError("a run must end with an evaluation")
    record({"event": "finish", "step": done, "best_step": best.step, "reason": stopped, "seconds": seconds})
    return Outcome(done, seconds, trained, best.step, best.metrics, best.predictions, stopped, model, untuned)


def _steps(job: Job, recipe: Recipe, total: int, record: Sink, display: Display) -> Iterator[Step]:
    """The loop, watched where the recipe asks for it."""
    steps = training_steps(*_loop_parts(job, recipe, total))
    if not recipe.training.profile:
        return steps

    def report(seen: Profile) -> None:
        record(seen.as_event())
        for line in seen.lines():
            display.say(line)

    return profiled(steps, recipe.training.precision, report)


def _loop_parts(job: Job, recipe: Recipe, total: int) -> tuple[Any, ...]:
    stepping = Stepping(
        pieces=piece_maker(job, recipe),
        load=batch_loader(job, recipe),
        autocast=forward_for(job, recipe).autocast,
        factor=make_schedule(recipe.schedule, total),
        max_gradient_norm=recipe.optimizer.max_gradient_norm,
        seed=recipe.seed,
    )
    phases: list[Phase] = job.strategy.phases(job.model, recipe.optimizer, total)
    batches = planned_batches(recipe, job.train.lengths, total)
    return job.model, job.objective, batches, phases, optimizer_maker(recipe), stepping


def _settle_formats(job: Job, recipe: Recipe, steps: int) -> None:
    """Which weights and gradients are held in bfloat16 while this run lasts."""
    longest = recipe.training.batch_size * int(job.train.lengths.max())
    if (recipe.training.micro_batch_tokens or longest) >= longest:
        keep_half_gradients(job.model)
    if recipe.training.precision == "bfloat16" and next(job.model.parameters()).device.type == "cpu":
        narrow_frozen(job.model, trained_names(job, recipe, steps))
        return_freed()


def _above_frozen(job: Job, recipe: Recipe, steps: int, display: Display) -> tuple[Job, float]:
    """The job with the frozen layers' output in place of token ids, where rows are seen more than once."""
    trained = trained_names(job, recipe, steps)
    depth = frozen_depth(job.model, trained) if recipe.training.trunk_cache else 0
    if not depth or steps <= steps_per_epoch(recipe, len(job.train)):
        return job, 0.0
    splits = {"train": job.train, "validation": job.validation}
    trunk = with_states(forward_for(job, recipe), depth, splits, display)
    if trunk is None:
        return job, 0.0
    return replace(job, train=trunk.splits["train"], validation=trunk.splits["validation"]), trunk.seconds


def _record_step(step: Step, recipe: Recipe, rows: int, record: Sink, bar: Bar, best: _Best, task: Task) -> None:
    if not (math.isfinite(step.loss) and math.isfinite(step.gradient_norm)):
        raise _diverged(recipe, f"loss {step.loss}, gradient norm {step.gradient_norm} at step {step.step}")
    epoch = step.step / steps_per_epoch(recipe, rows)
    record(
        {
            "event": "step",
            "step": step.step,
            "epoch": round(epoch, 4),
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "rows": step.rows,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 5),
        }
    )
    seen = f"  {task.primary_metric} {best.metrics[task.primary_metric]:.4f}" if best.metrics else ""
    bar.advance(1, f"loss {step.loss:.4f}{seen}")


def _untuned(job: Job, recipe: Recipe, record: Sink) -> Predictions:
    """The validation of the model as it is before step one."""
    began = time.perf_counter()
    predictions, metrics = _validate(job, recipe, 0)
    seconds = round(time.perf_counter() - began, 3)
    record({"event": "evaluation", "step": 0, "epoch": 0.0, "metrics": metrics, "best": False, "seconds": seconds})
    return predictions


def _validate(job: Job, recipe: Recipe, step: int) -> tuple[Predictions, dict[str, float]]:
    predictions = predict_encoded(forward_for(job, recipe), job.validation, job.task.read)
    if predictions.losses is None or not np.isfinite(predictions.losses).all():
        raise _diverged(recipe, f"a validation loss that is not a number after step {step}")
    return predictions, job.task.measure(_targets(job.validation), predictions)


def _evaluate(job: Job, recipe: Recipe, step: int, record: Sink, best: _Best) -> None:
    began = time.perf_counter()
    predictions, metrics = _validate(job, recipe, step)
    rank = job.task.rank(metrics)
    better = rank > best.rank
    if better:
        best.step, best.rank, best.metrics, best.predictions = step, rank, metrics, predictions
        best.weights = _trained_weights(job.model)
        best.worse_in_a_row = 0
    else:
        best.worse_in_a_row += 1
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


def _diverged(recipe: Recipe, got: str) -> DivergedError:
    problem = Problem(
        expected="a finite loss and gradient",
        got=got,
        todo=f"Lower the learning rate ({recipe.optimizer.learning_rate:g}) or set training.precision=float32.",
    )
    return DivergedError("Training has diverged.", [problem])


def _trained_weights(model: Any) -> dict[str, torch.Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        catch_up(parameter)
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def _restore(model: Any, weights: dict[str, torch.Tensor]) -> None:
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(value)


def _targets(encoded: Encoded) -> np.ndarray:
    if encoded.targets is None:
        raise ValueError("training and validation rows need targets")
    return encoded.targets
