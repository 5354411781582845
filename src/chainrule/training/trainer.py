"""The driver of the loop: validates, records, keeps the best weights, stops."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Recipe
from chainrule.core.task import Predictions, Task
from chainrule.errors import DivergedError, Problem, StoppedError, Where
from chainrule.inference.predict import with_references
from chainrule.kernels.adamw import forget_rows
from chainrule.models.accelerate import keep_half_gradients, narrow_frozen, widen_frozen
from chainrule.models.adapters import has_adapters, without_adapters
from chainrule.models.inspect import parts
from chainrule.models.trunk import frozen_depth
from chainrule.system.memory import return_freed
from chainrule.system.processes import World
from chainrule.system.progress import Bar, Display
from chainrule.system.stop import StopRequest, stop_requests, who_stopped
from chainrule.training.checkpoint import Best, Found, Standing
from chainrule.training.data_parallel import AnyKeeper
from chainrule.training.decisions import Decision, read_decisions, take
from chainrule.training.divergence import MOST_RETREATS, RATE_FACTOR, DivergenceError, Losses, first_bad_part
from chainrule.training.events import Sink
from chainrule.training.handover import finished
from chainrule.training.job import (
    Job,
    batch_loader,
    forward_for,
    optimizer_maker,
    planned_steps,
    steps_per_epoch,
    trained_count,
    trained_names,
)
from chainrule.training.loop import Step, enter, phase_at
from chainrule.training.shortage import halve, shrink_again, steps_in_memory
from chainrule.training.trunk import with_states
from chainrule.training.validation import evaluate, put_weights, validate_untuned, waits
from chainrule.training.watch import make_watch


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


def train(job: Job, recipe: Recipe, record: Sink, display: Display, keeper: AnyKeeper) -> Outcome:
    """Run the loop to its end and leave the best weights in `job.model`.

    Args:
        recipe: resolved.
        record: takes every step and evaluation as it happens.
        keeper: of the run's checkpoints. The newest of them is where this begins, if there is one.

    Raises:
        DivergedError: the loss or the gradient is not a finite number.
        StoppedError: Ctrl-C or SIGTERM; there is a checkpoint of the last step.
    """
    job, standing, stopped = make_all_steps(job, recipe, record, display, keeper)
    best = standing.best
    trained = trained_count(job, recipe, planned_steps(recipe, len(job.train)))
    put_weights(job.model, best.weights)
    widen_frozen(job.model)
    model = finished(job, record)
    if best.predictions is None:
        raise ValueError("a run must end with an evaluation")
    predictions, metrics = best.predictions, best.metrics
    if job.task.calibrate is not None:
        predictions = job.task.calibrate(model, job.validation.targets, predictions)
        metrics = job.task.measure(job.validation.targets, predictions)
    done, seconds = standing.progress.step, standing.seconds
    record({"event": "finish", "step": done, "best_step": best.step, "reason": stopped, "seconds": seconds})
    return Outcome(done, seconds, trained, best.step, metrics, predictions, stopped, model, standing.untuned)


def make_all_steps(
    job: Job, recipe: Recipe, record: Sink, display: Display, keeper: AnyKeeper
) -> tuple[Job, Standing, str]:
    """The steps of a run from where it stands, and nothing after the last: all that every process of a world does.

    Returns:
        The job as it was trained, where the run stands, and why there are no more steps.

    Raises:
        DivergedError, StoppedError: as `train`.
    """
    total = planned_steps(recipe, len(job.train))
    settle_formats(job, recipe, total)
    job = referring(job, recipe, display)
    job, trunk_seconds = _above_frozen_in_turn(job, recipe, total, display)
    job = watching(job, recipe, total)
    standing = Standing(seconds=trunk_seconds)
    if not _take_up(job, recipe, standing, keeper, record, display):
        record({"event": "start", "step": 0, "steps": total, "rows": len(job.train)})
        if job.watch is not None:
            record(job.watch.as_event())
        if job.task.baseline == "untuned":
            job.world.told(lambda: _note_untuned(job, recipe, standing, record))
        named = dict(job.model.named_parameters())
        names = trained_names(job, recipe, total)
        job.world.spread([named[name].detach() for name in sorted(names)])
        standing.start = {name: named[name].detach().clone() for name in names}
    if keeper.halve:
        shrink_again(standing, record)
        halve(job, recipe, standing, record, display)
    return job, standing, _make_steps(job, recipe, standing, keeper, record, display)


def _above_frozen_in_turn(job: Job, recipe: Recipe, steps: int, display: Display) -> tuple[Job, float]:
    """As `above_frozen`: the first process fills the cache, in which others on its machine find it."""
    if not job.world.first:
        job.world.wait()
    made = above_frozen(job, recipe, steps, display)
    if job.world.first:
        job.world.wait()
    return made


def _note_untuned(job: Job, recipe: Recipe, standing: Standing, record: Sink) -> None:
    standing.untuned = _untuned(job, recipe, record)


def _untuned(job: Job, recipe: Recipe, record: Sink) -> Predictions:
    try:
        return validate_untuned(job, recipe, record)
    except DivergenceError as error:  # there is nothing to go back to
        raise _diverged(job, recipe, error, None) from None


def _make_steps(job: Job, recipe: Recipe, standing: Standing, keeper: AnyKeeper, record: Sink, display: Display) -> str:
    """Make the steps that are left, going back where training diverges; why there are no more."""
    while True:
        try:
            return _go_on(job, recipe, standing, keeper, record, display)
        except DivergenceError as error:
            first = _first_in(job, recipe, error)
            found = _where_to(error.step, standing, keeper, display)
            if standing.retreats == MOST_RETREATS or not (found or standing.start):
                raise _diverged(job, recipe, error, first) from None
            _retreat(job, recipe, standing, found)
            told = {"step": error.step, "reason": str(error), "first_in": first, "back_to": standing.progress.step}
            record({"event": "diverged", **told, "rate_factor": standing.rate_factor})
            display.say(
                f"warning: training has diverged ({error}); back to step {standing.progress.step:,} with "
                f"{standing.rate_factor:g} of the learning rate."
            )


def _where_to(step: int, standing: Standing, keeper: AnyKeeper, display: Display) -> Found | None:
    """The checkpoint that training goes back to; None for the start."""
    decision = take(standing.pending, "diverged", step)
    if decision is None:
        standing.pending.clear()  # the steps have come out otherwise than before
        return keeper.newest(display.say)
    return keeper.newest(display.say, decision["back_to"])


def _retreat(job: Job, recipe: Recipe, standing: Standing, found: Found | None) -> None:
    """Back to a checkpoint, or to the start, with a lower learning rate."""
    retreats, factor = standing.retreats + 1, standing.rate_factor * RATE_FACTOR
    standing.progress.optimizer = None
    for parameter in job.model.parameters():
        forget_rows(parameter)
    if found is not None:
        _put_back(job, recipe, standing, found)
    else:
        put_weights(job.model, standing.start)
        standing.progress.step, standing.best, standing.losses = 0, Best(), Losses()
    standing.losses.last.clear()
    standing.retreats, standing.rate_factor = retreats, factor


def _put_back(job: Job, recipe: Recipe, standing: Standing, found: Found) -> None:
    phases = job.strategy.phases(job.model, recipe.optimizer, planned_steps(recipe, len(job.train)))
    enter(phase_at(phases, found.step), job.model, optimizer_maker(job, recipe), standing.progress)
    found.put_into(job.model, standing)


def _go_on(job: Job, recipe: Recipe, standing: Standing, keeper: AnyKeeper, record: Sink, display: Display) -> str:
    """Make the steps that are left; why there are no more."""
    total = planned_steps(recipe, len(job.train))
    every = recipe.training.evaluate_every_steps or steps_per_epoch(recipe, len(job.train))
    trained = trained_names(job, recipe, total)
    stopped = _enough(job, recipe, standing)
    with display.bar("training", total) as bar, stop_requests(display.say) as request:
        if standing.progress.step:
            bar.advance(standing.progress.step)
        for step in steps_in_memory(job, recipe, standing, record, display) if stopped is None else ():
            standing.seconds += step.seconds
            _record_step(step, recipe, len(job.train), record, bar, standing.best, job.task)
            standing.losses.note(step.loss)
            if standing.losses.exploded:
                what = f"a loss of {step.loss:.4g} at step {step.step}, above {standing.losses.limit:.4g}"
                raise DivergenceError(what, step.step)
            if step.step % every == 0 or step.step == total:
                evaluate(job, recipe, standing, record)
                stopped = _enough(job, recipe, standing)
            signal = _asked_to_stop(job.world, request)
            if signal is not None or keeper.due(standing):
                keeper.write(job.model, trained, standing)
            if signal is not None and step.step < total:
                job.world.wait()  # whoever ends takes the others with it, who may still be writing
                raise _stopped(signal, step.step, total, keeper.run)
            if stopped is not None:
                break
    return stopped or "all steps done"


def _asked_to_stop(world: World, request: StopRequest) -> int | None:
    """The signal that any process has got; None for none. All of them stop after the same step."""
    if world.alone:
        return request.signal
    return int(world.largest(torch.tensor([request.signal or 0]))) or None


def _enough(job: Job, recipe: Recipe, standing: Standing) -> str | None:
    """Why no further step is to be made, if so."""
    training, total = recipe.training, planned_steps(recipe, len(job.train))
    if standing.progress.step >= total:
        return "all steps done"
    waited = waits(standing.best.ranks, training.min_delta)
    if training.patience is None or not waited or waited[-1] < training.patience:
        return None
    metric = job.task.ranking_metric(training.early_stopping_metric)
    return f"no better validation {metric} in {training.patience} evaluations"


def _take_up(job: Job, recipe: Recipe, standing: Standing, keeper: AnyKeeper, record: Sink, display: Display) -> bool:
    """Give the model and `standing` what the newest checkpoint holds; False where there is none."""
    found = keeper.newest(display.say)
    if found is None:
        standing.pending = job.world.told(lambda: _decided_before(keeper))
        return False
    _put_back(job, recipe, standing, found)
    pending, begun = found.state["pending"], found.state["events_bytes"]
    standing.pending = job.world.told(lambda: _decided_since(keeper, pending, begun))
    record({"event": "resumed", "step": found.step})
    display.say(f"Going on after step {found.step:,}.")
    return True


def _decided_before(keeper: AnyKeeper) -> list[Decision]:
    """What is to be decided again, as every step is made again; the record begins anew."""
    pending = [*keeper.decided] or read_decisions(keeper.events)
    keeper.events.unlink(missing_ok=True)
    return pending


def _decided_since(keeper: AnyKeeper, pending: list[Decision], begun: int) -> list[Decision]:
    """The same after a checkpoint, which knows what was pending then; the record goes back to its length then."""
    made = read_decisions(keeper.events, begun)
    os.truncate(keeper.events, begun)
    return made + pending[len(made) :]


def _stopped(number: int, step: int, total: int, run: Path) -> StoppedError:
    name, code = who_stopped(number)
    problem = Problem(
        where=Where(file=str(run)),
        expected=f"{total:,} steps",
        got=f"{step:,}; everything so far is kept",
        todo=f"Go on with: chainrule train --resume {run}",
    )
    return StoppedError(f"Stopped by {name} after step {step:,}.", [problem], code)


def settle_formats(job: Job, recipe: Recipe, steps: int) -> None:
    """Which weights and gradients are held in bfloat16 while this run lasts."""
    if not recipe.training.accelerate:
        return
    longest = recipe.training.batch_size * int(job.train.lengths.max())
    whole = (recipe.training.micro_batch_tokens or longest) >= longest and job.world.alone
    if whole and not (recipe.regularisers or recipe.distillation.reads_states):  # weights may be used twice
        keep_half_gradients(job.model)
    if recipe.training.precision == "bfloat16" and next(job.model.parameters()).device.type == "cpu":
        narrow_frozen(job.model, trained_names(job, recipe, steps))
        return_freed()


def referring(job: Job, recipe: Recipe, display: Display) -> Job:
    """The job with what the model, as it is before step one, says of the rows, if the task asks for it."""
    if job.task.reference is None:
        return job
    with without_adapters(job.model) if has_adapters(job.model) else nullcontext(job.model) as base:
        forward = replace(forward_for(job, recipe), model=base)
        splits = {}
        for name, rows in (("train", job.train), ("validation", job.validation)):
            with display.bar(f"what the model says before training ({name})", len(rows)) as bar:
                splits[name] = with_references(forward, rows, job.task, bar)
    return replace(job, train=splits["train"], validation=splits["validation"])


def above_frozen(job: Job, recipe: Recipe, steps: int, display: Display) -> tuple[Job, float]:
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


def watching(job: Job, recipe: Recipe, steps: int) -> Job:
    """The job with its trained layers watched, if the recipe asks for it; before any weights are changed."""
    if not recipe.training.watch_gradients:
        return job
    return replace(job, watch=make_watch(job.model, parts(job.model), trained_names(job, recipe, steps), steps))


def _record_step(step: Step, recipe: Recipe, rows: int, record: Sink, bar: Bar, best: Best, task: Task) -> None:
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


def _first_in(job: Job, recipe: Recipe, error: DivergenceError) -> str | None:
    """What first gave no number for the rows of a step that could not be made; None for another kind of divergence."""
    if error.rows is None:
        return None
    batch = batch_loader(job, recipe)(error.rows)
    if (error.rows >= len(job.row_numbers)).any():  # rows without labels have no loss that could be read
        batch = replace(batch, targets=None)
    autocast = forward_for(job, recipe).autocast
    return first_bad_part(job.model, batch, autocast, lambda model, few: job.task.read(model, few, job.train))


def _diverged(job: Job, recipe: Recipe, error: DivergenceError, first: str | None) -> DivergedError:
    """The end of a run that has diverged too often: what went wrong first, and with which rows."""
    got = str(error) if first is None else f"{error}; first in {first}"
    if error.rows is not None:
        got += f"; rows of train: {_rows_told(job, error.rows)}"
    problem = Problem(
        expected="a finite loss and gradient",
        got=got,
        todo=f"Lower the learning rate ({recipe.optimizer.learning_rate:g}) or set training.precision=float32.",
    )
    return DivergedError("Training has diverged.", [problem])


def _rows_told(job: Job, rows: np.ndarray) -> str:
    labelled = rows[rows < len(job.row_numbers)]
    told = [f"{row:,}" for row in np.sort(job.row_numbers[labelled])]
    further = len(rows) - len(labelled)
    return ", ".join([*told, *([f"{further:,} without labels"] if further else [])])
