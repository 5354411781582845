"""From a recipe to a run folder: check, encode, resolve, train, save, judge, report; and on from where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from chainrule.core.artifact import EVENTS, Run
from chainrule.core.recipe import Recipe, parse_recipe, read_recipe
from chainrule.core.report import Reproduction
from chainrule.errors import OutputError, Problem, Where
from chainrule.evaluation.report import model_card, write_report
from chainrule.models import scratch
from chainrule.strategies import make_strategy, refuse_misfit, reserved_tokens
from chainrule.strategies.base import Strategy
from chainrule.system.device import choose_device, use_threads
from chainrule.system.files import (
    atomic_folder,
    output_errors,
    read_json,
    refuse_existing,
    write_json,
    write_text,
)
from chainrule.system.lock import only_one
from chainrule.system.memory import PeakMemory, keep_freed, kernel_kills
from chainrule.system.processes import ALONE, World
from chainrule.system.progress import Display
from chainrule.system.seed import choose_determinism, seed_everything
from chainrule.tasks import find_task
from chainrule.tasks.prepare import Prepared, prepare
from chainrule.tasks.suited import task_of
from chainrule.training.building import make_job
from chainrule.training.checkpoint import Keeper
from chainrule.training.companions import keep_companions
from chainrule.training.completion import with_known, with_parts
from chainrule.training.data_parallel import AnyKeeper, SharedKeeper, refuse_sharing
from chainrule.training.decisions import Decision, read_decisions
from chainrule.training.events import every_sink, require_trackers
from chainrule.training.inputs import INPUTS, record_inputs, refuse_changes, tell_changes, workers_of
from chainrule.training.job import Job
from chainrule.training.memory import require_address_space
from chainrule.training.reproduction import keep_comparison
from chainrule.training.resolve import resolve
from chainrule.training.results import clear, is_finished, judge_validation, save_artifact, summary_of, write_summary
from chainrule.training.trainer import Outcome, make_all_steps, train

STARTED = "started.json"


def train_recipe(recipe: Recipe, source: Any, out: Path, display: Display, began: float, world: World = ALONE) -> Run:
    """Carry out a recipe.

    Args:
        source: what to read instead of `recipe.data.source`: a path or an object that holds rows; None for neither.
        out: the run folder, which must not exist. It appears, with its recipe inside, once the data has passed
            every check; its artifact appears when it is whole.
        began: the reading of `time.perf_counter` when the work was asked for.
        world: the processes that share each batch, all of which call this.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    with ExitStack() as held, PeakMemory() as memory:
        with world.together():
            if world.first:
                refuse_existing(out)
                require_trackers(recipe.training.track)
            refuse_sharing(recipe, task_of(recipe), world)
            prepared, chosen = prepare_rows(recipe, source, display)
            job = replace(make_job(chosen, prepared, display), world=world)
        resolved = _resolved(job, chosen, display)
        with world.together():
            if world.first:
                begin(out, recipe, job, resolved, prepared)
                held.enter_context(only_one(out))
        _carry_out_together(job, resolved, prepared, out, display, (began, memory))
    return Run(out)


def resume_run(out: Path, source: Any, display: Display, began: float, world: World = ALONE) -> Run:
    """Go on with a run that was stopped, from its newest checkpoint, as if it had never been stopped.

    Args:
        out: the run folder.
        source: the rows again, where the run was given an object instead of a path; None otherwise.
        world: as in `train_recipe`; there may be more processes than before, or fewer.

    Raises:
        UserError: there is no such run, its data or its model has changed, or another process works on it.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    with ExitStack() as held, PeakMemory() as memory:
        with world.together():
            require_run(out)
            if world.first:
                held.enter_context(only_one(out))
        if world.told(lambda: is_finished(out)):
            display.say(f"The run {out} is finished; there is nothing to go on with.")
            return Run(out)
        with world.together():
            recipe = read_recipe(out / "resolved.yaml")
            if workers_of(out) != world.size:
                recipe = recipe.replace({"training.threads": None})  # each worker had its part of the cores
            require_trackers(recipe.training.track)
            refuse_sharing(recipe, task_of(recipe), world)
            rows = recipe.data.source if source is None else source
            job, prepared, recipe = prepare_job(recipe, rows, display, out)
            refuse_changes(out, recipe, prepared)
            job = replace(job, world=world)
            if world.first:
                tell_changes(out, job, recipe, display)
                clear(out)
        _carry_out_together(job, recipe, prepared, out, display, (began, memory))
    return Run(out)


def reproduce_run(run: Path, source: Any, out: Path, display: Display, began: float) -> Reproduction:
    """Make a finished run again, with every choice it made, and compare what comes out.

    Args:
        run: the run folder.
        source: the rows again, where the run was given an object instead of a path; None otherwise.
        out: the folder of the second run, which must not exist.

    Raises:
        UserError: there is no such run, it is not finished, or its data or its model has changed.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    require_run(run)
    refuse_existing(out)
    if not is_finished(run):
        problem = Problem(
            where=Where(file=str(run)),
            expected="a finished run",
            got="one that was stopped before its end",
            todo=f"Finish it first: chainrule train --resume {run}",
        )
        raise OutputError("There is nothing yet to compare with.", [problem])
    recipe = read_recipe(run / "resolved.yaml")
    with PeakMemory() as memory:
        job, prepared, resolved = prepare_job(recipe, recipe.data.source if source is None else source, display, run)
        refuse_changes(run, resolved, prepared)
        changed = tell_changes(run, job, resolved, display)
        begin(out, recipe, job, resolved, prepared)
        keeper = keeper_of(out, resolved, read_decisions(run / EVENTS))
        with only_one(out):
            carry_out(keeper, job, resolved, prepared, display, began, memory)
    return keep_comparison(run, out, changed)


def require_run(out: Path) -> None:
    """Make sure that a folder is that of a run.

    Raises:
        OutputError: it is not, or it is one fold of a run.
    """
    if (whole := Run(out).whole) is not None:
        todo = f"Take the whole run: {whole}"
        problem = Problem("a run folder", f"one fold of the run {whole}", todo, Where(file=str(out)))
        raise OutputError(f"{out} is no run of its own.", [problem])
    if not all((out / name).is_file() for name in ("resolved.yaml", INPUTS)):
        got = "no such folder" if not out.exists() else f"a folder without resolved.yaml or {INPUTS}"
        todo = "Give the folder that `chainrule train --out` made, or train anew."
        problem = Problem(where=Where(file=str(out)), expected="a run folder", got=got, todo=todo)
        raise OutputError(f"There is no run at {out}.", [problem])


def begin(out: Path, asked: Recipe, job: Job, resolved: Recipe, prepared: Prepared) -> None:
    """The run folder, with what is known before step one."""
    with atomic_folder(out) as folder:
        write_text(folder / "recipe.yaml", asked.to_yaml())
        write_text(folder / "resolved.yaml", resolved.to_yaml())
        write_json(folder / "check.json", prepared.report.as_dict())
        record_inputs(folder, job, resolved, prepared)
        keep_companions(folder, job.companions)


def prepare_job(recipe: Recipe, source: Any, display: Display, run: Path | None = None) -> tuple[Job, Prepared, Recipe]:
    """Data, model and kernels, ready for step one.

    Args:
        run: as in `make_job`.
    """
    prepared, recipe = prepare_rows(recipe, source, display)
    return make_job(recipe, prepared, display, run), prepared, recipe


def prepare_rows(
    recipe: Recipe, source: Any, display: Display, splits: Sequence[str] | None = ("train", "validation")
) -> tuple[Prepared, Recipe]:
    """The data, and the recipe with what is known before a model is loaded.

    Args:
        splits: which splits to encode; None for all.
    """
    require_address_space()
    task, strategy = task_of(recipe), make_strategy(recipe.strategy)
    refuse_misfit(recipe.strategy.name, task)
    scratch.refuse_misfit(recipe, task)
    recipe = with_parts(recipe, task)
    threads = use_threads(recipe.training.threads)
    deterministic = choose_determinism(choose_device(recipe.training.device), recipe.training.deterministic)
    if task.micro_batch_tokens is None:  # where pieces keep memory low, freed memory must not stay
        keep_freed()
    display.say(f"Reading {recipe.data.source or type(source).__name__} …")
    prepared = prepare(recipe, source, task, splits, reserved=reserved_tokens(strategy))
    _tell(prepared, display)
    known = {"training.threads": threads, "training.deterministic": deterministic}
    return prepared, with_known(recipe, prepared).replace(known)


def _resolved(job: Job, recipe: Recipe, display: Display) -> Recipe:
    """The recipe with every choice made, which the first of several processes makes for all."""
    recipe = _with_options(recipe, job.strategy)
    if job.world.alone:
        return resolve(job, recipe, display)
    return parse_recipe(job.world.told(lambda: resolve(job, recipe, display).model_dump(mode="json")))


def plan(recipe: Recipe, prepared: Prepared, display: Display) -> tuple[Job, Recipe]:
    """The job of a recipe, and the recipe with every choice made."""
    job = make_job(recipe, prepared, display)
    return job, resolve(job, _with_options(recipe, job.strategy), display)


def keeper_of(out: Path, recipe: Recipe, decided: Sequence[Decision] = ()) -> Keeper:
    """Of the checkpoints of a run, with what has become of the process that worked on it before."""
    minutes, keep = recipe.training.checkpoint_minutes, recipe.training.keep_checkpoints
    return Keeper(out, minutes, keep, halve=_was_killed_for_memory(out), decided=decided)


def _carry_out_together(
    job: Job, recipe: Recipe, prepared: Prepared, out: Path, display: Display, since: tuple[float, PeakMemory]
) -> None:
    """What this process does of a run: one alone all of it, one of several its part of the steps."""
    keeper = keeper_of(out, recipe)
    if job.world.alone:
        carry_out(keeper, job, recipe, prepared, display, *since)
        return
    shared = SharedKeeper(keeper, job.world)
    if job.world.first:
        carry_out(shared, job, recipe, prepared, display, *since)
        return
    seed_everything(recipe.seed)
    make_all_steps(job, recipe, lambda event: None, display, shared)
    job.world.told(lambda: None)  # until the first one has saved and judged


def carry_out(
    keeper: AnyKeeper, job: Job, recipe: Recipe, prepared: Prepared, display: Display, began: float, memory: PeakMemory
) -> None:
    """Train, save, judge, report."""
    with output_errors(keeper.run):
        outcome = train_job(keeper, job, recipe, display)
    job.world.told(lambda: _complete(keeper.run, job, recipe, prepared, outcome, display, (began, memory)))


def _complete(
    out: Path,
    job: Job,
    recipe: Recipe,
    prepared: Prepared,
    outcome: Outcome,
    display: Display,
    since: tuple[float, PeakMemory],
) -> None:
    """What comes after the last step."""
    with output_errors(out):
        manifest = save_artifact(out, job, recipe, prepared, outcome)
        report = judge_validation(out, job, prepared, outcome, recipe, display)
        write_text(out / "artifact" / "README.md", model_card(manifest, report))
        summary = summary_of(out, recipe, outcome, job.task, report)
        write_summary(out, summary, *since)
        write_report(out)
        write_summary(out, summary, *since)  # with the time of the report


def train_job(keeper: AnyKeeper, job: Job, recipe: Recipe, display: Display) -> Outcome:
    """Make the steps that are left of a run, and record them in its folder."""
    write_json(keeper.run / STARTED, _started())
    seed_everything(recipe.seed)
    return train(job, recipe, every_sink(recipe.training.track, keeper.run), display, keeper)


def _started() -> dict[str, Any]:
    return {"boot": int(psutil.boot_time()), "kernel_kills": kernel_kills()}


def _was_killed_for_memory(out: Path) -> bool:
    """Whether the system has killed a process for want of memory since this run was last started."""
    if not (out / STARTED).is_file():
        return False
    before, now = read_json(out / STARTED), _started()
    if not all(isinstance(before.get(name), int | None) for name in now):
        return False
    same_boot = abs((before["boot"] or 0) - now["boot"]) <= 1
    return same_boot and (now["kernel_kills"] or 0) > (before["kernel_kills"] or 0)


def _tell(prepared: Prepared, display: Display) -> None:
    report = prepared.report
    for finding in report.findings:
        display.say(f"{finding.severity}: {finding.message}" + (f" {finding.todo}" if finding.todo else ""))
    sizes = ", ".join(f"{split.rows:,} {name}" for name, split in report.splits.items())
    labels = f" {len(report.labels)} labels;" if report.labels else ""
    what = "images" if find_task(report.task).sees else f"at most {prepared.max_length} tokens a row"
    display.say(f"Data: {sizes} rows;{labels} {what}.")
    if "vocabulary" in prepared.model_options and not prepared.model_options["pieces"]:
        unknown = np.mean(prepared.encoded["validation"].ids == prepared.tokenizer.unk_token_id)
        display.say(
            f"Vocabulary: {len(prepared.tokenizer):,} entries ({prepared.model_options['vocabulary']}s) from the "
            f"training rows; {100 * unknown:.1f} % of the validation tokens are unknown."
        )


def _with_options(recipe: Recipe, strategy: Strategy) -> Recipe:
    """With every option of the strategy written out, those that it chose on seeing the model included."""
    return recipe.replace({"strategy.options": strategy.options.model_dump(mode="json")})
