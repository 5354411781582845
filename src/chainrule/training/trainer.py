"""The driver of the loop: validates, records, keeps the best weights, stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Recipe
from chainrule.core.task import Objective, Predictions, Task
from chainrule.data.batch import Batch, collate, epoch_order
from chainrule.data.encode import Encoded
from chainrule.errors import DivergedError, Problem
from chainrule.inference.predict import Forward, predict_encoded
from chainrule.kernels.adamw import catch_up
from chainrule.models.accelerate import keep_half_gradients
from chainrule.models.heads import settle
from chainrule.models.inspect import count_parameters
from chainrule.models.trunk import frozen_depth
from chainrule.strategies.base import Phase, Strategy
from chainrule.system.progress import Bar, Display
from chainrule.training import probe
from chainrule.training.events import Sink
from chainrule.training.loop import MakeOptimizer, Step, Stepping, activate, training_steps
from chainrule.training.optimizers import make_optimizer
from chainrule.training.schedules import make_schedule
from chainrule.training.trunk import with_states

PROBE_BATCHES = 3
RESERVE_FOR_THE_REST = 1.15  # validation, saving and baselines take about this much on top of the steps


@dataclass(frozen=True)
class Job:
    """What is trained on what, and how: everything but the recipe's numbers."""

    model: Any
    task: Task
    objective: Objective
    strategy: Strategy
    train: Encoded
    validation: Encoded
    forward: Forward


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


def resolve(job: Job, recipe: Recipe, display: Display) -> Recipe:
    """Fill in what the recipe leaves open: learning rate, number format, number of steps.

    What a clock or a probe decides is decided here, once, before step one: minutes become steps.
    """
    changes: dict[str, Any] = {}
    if recipe.optimizer.learning_rate is None:
        changes["optimizer.learning_rate"] = job.strategy.default_learning_rate
    micro = recipe.training.micro_batch_size or _micro_batch_size(job, recipe)
    changes["training.micro_batch_size"] = min(micro, recipe.training.batch_size)
    recipe = recipe.replace(changes)
    planned = planned_steps(recipe, len(job.train))
    groups = activate(job.model, job.strategy.phases(job.model, recipe.optimizer, planned)[0])
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    share = f"{trained:,} of {count_parameters(job.model):,} parameters"
    display.say(
        f"Strategy {recipe.strategy.name}: trains {share}, {planned:,} steps of {recipe.training.batch_size} rows."
    )
    precision = _choose_precision(job, recipe, display)
    recipe = recipe.replace({"training.precision": precision, "training.steps": planned})
    minutes = recipe.training.minutes
    if minutes is not None:
        steps = min(planned, _affordable(job, recipe, groups, precision))
        recipe = recipe.replace({"training.steps": steps, "training.minutes": None})
        if steps < planned:
            display.say(f"{minutes:g} minutes are enough for {steps} of {planned} planned steps.")
    return recipe


def train(job: Job, recipe: Recipe, record: Sink, display: Display) -> Outcome:
    """Run the loop to its end and leave the best weights in `job.model`.

    Args:
        recipe: resolved.
        record: takes every step and evaluation as it happens.

    Raises:
        DivergedError: the loss or the gradient is not a finite number.
    """
    total = planned_steps(recipe, len(job.train))
    if recipe.training.accelerate and recipe.training.micro_batch_size == recipe.training.batch_size:
        keep_half_gradients(job.model)
    job, trunk_seconds = _above_frozen(job, recipe, total, display)
    best = _Best()
    record({"event": "start", "step": 0, "steps": total, "rows": len(job.train)})
    untuned = _untuned(job, recipe, record) if job.task.baseline == "untuned" else None
    done, seconds, stopped = 0, trunk_seconds, "all steps done"
    every = recipe.training.evaluate_every_steps or steps_per_epoch(recipe, len(job.train))
    with display.bar("training", total) as bar:
        for step in training_steps(*_loop_parts(job, recipe, total)):
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
    model = job.strategy.finish(job.model)
    settle(model)
    if best.predictions is None:
        raise ValueError("a run must end with an evaluation")
    record({"event": "finish", "step": done, "best_step": best.step, "reason": stopped, "seconds": seconds})
    return Outcome(done, seconds, trained, best.step, best.metrics, best.predictions, stopped, model, untuned)


def steps_per_epoch(recipe: Recipe, rows: int) -> int:
    """Optimizer steps to see every row once."""
    return math.ceil(rows / recipe.training.batch_size)


def planned_steps(recipe: Recipe, rows: int) -> int:
    """The length of the run: `training.steps` where it is set, else `training.epochs`."""
    if recipe.training.steps is not None:
        return recipe.training.steps
    return max(1, math.ceil(recipe.training.epochs * steps_per_epoch(recipe, rows)))


def planned_batches(recipe: Recipe, lengths: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    """Row positions of each effective batch, epoch after epoch, `steps` in all."""
    made, epoch = 0, 0
    while made < steps:
        for rows in epoch_order(
            lengths,
            recipe.training.batch_size,
            seed=recipe.seed,
            epoch=epoch,
            group_by_length=recipe.training.group_by_length,
        ):
            if made == steps:
                return
            yield rows
            made += 1
        epoch += 1


def _loop_parts(job: Job, recipe: Recipe, total: int) -> tuple[Any, ...]:
    stepping = Stepping(
        load=_loader(job),
        autocast=_forward(job, recipe).autocast,
        factor=make_schedule(recipe.schedule, total),
        micro_batch_size=recipe.training.micro_batch_size or recipe.training.batch_size,
        max_gradient_norm=recipe.optimizer.max_gradient_norm,
        seed=recipe.seed,
    )
    phases: list[Phase] = job.strategy.phases(job.model, recipe.optimizer, total)
    batches = planned_batches(recipe, job.train.lengths, total)
    return job.model, job.objective, batches, phases, _optimizer_maker(recipe), stepping


def _above_frozen(job: Job, recipe: Recipe, steps: int, display: Display) -> tuple[Job, float]:
    """The job with the frozen layers' output in place of token ids, where rows are seen more than once."""
    phases = job.strategy.phases(job.model, recipe.optimizer, steps)
    trained = {name for phase in phases for group in phase.groups for name in group.names}
    depth = frozen_depth(job.model, trained) if recipe.training.trunk_cache else 0
    if not depth or steps <= steps_per_epoch(recipe, len(job.train)):
        return job, 0.0
    splits = {"train": job.train, "validation": job.validation}
    trunk = with_states(_forward(job, recipe), depth, splits, display)
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
    predictions = predict_encoded(_forward(job, recipe), job.validation, job.task.read)
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


def _micro_batch_size(job: Job, recipe: Recipe) -> int:
    tokens, size = job.task.micro_batch_tokens, recipe.training.batch_size
    return size if tokens is None else max(1, min(size, tokens // int(job.train.lengths.max())))


def _choose_precision(job: Job, recipe: Recipe, display: Display) -> str:
    asked: str = recipe.training.precision
    if asked != "auto" or job.forward.precision == "float32":
        return job.forward.precision if asked == "auto" else asked
    faster, seconds = probe.faster_precision(job.model, job.objective, _typical(job, recipe))
    shown = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in seconds.items())
    display.say(f"Number format: {faster} (a step here takes {shown})")
    return faster


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


def _loader(job: Job) -> Callable[[np.ndarray], Batch]:
    forward = job.forward
    return lambda rows: collate(job.train, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)


def _forward(job: Job, recipe: Recipe) -> Forward:
    chosen = job.forward
    return Forward(chosen.model, chosen.pad_id, chosen.pad_left, chosen.device, recipe.training.precision)


def _optimizer_maker(recipe: Recipe) -> MakeOptimizer:
    return partial(make_optimizer, recipe.optimizer)


def _typical(job: Job, recipe: Recipe) -> Batch:
    """The batch whose width is in the middle of the first epoch's."""
    return _loader(job)(_spread(job, recipe, 1)[0])


def _spread(job: Job, recipe: Recipe, count: int) -> list[np.ndarray]:
    lengths = job.train.lengths
    batches = list(planned_batches(recipe, lengths, steps_per_epoch(recipe, len(job.train))))
    batches.sort(key=lambda rows: int(lengths[rows].max()))
    places = [(2 * i + 1) * len(batches) // (2 * count) for i in range(count)]
    return [batches[place] for place in places]


def _affordable(job: Job, recipe: Recipe, groups: Sequence[dict[str, Any]], precision: str) -> int:
    batches = _spread(job, recipe, PROBE_BATCHES)
    micro = recipe.training.micro_batch_size or recipe.training.batch_size
    autocast = _forward(job, recipe).autocast
    token_seconds = probe.seconds_per_token(job.model, job.objective, batches, _loader(job), autocast, micro)
    step_seconds = probe.optimizer_seconds(list(groups), _optimizer_maker(recipe))
    planned = planned_batches(recipe, job.train.lengths, planned_steps(recipe, len(job.train)))
    budget = (recipe.training.minutes or 0.0) * 60 / RESERVE_FOR_THE_REST
    return probe.steps_that_fit(budget, planned, job.train.lengths, token_seconds, step_seconds)


def _targets(encoded: Encoded) -> np.ndarray:
    if encoded.targets is None:
        raise ValueError("training and validation rows need targets")
    return encoded.targets
