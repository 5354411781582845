"""From a recipe to a run folder: check, encode, resolve, train, save, judge, report; and on from where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from chainrule.core.artifact import Run
from chainrule.core.recipe import Recipe, read_recipe
from chainrule.core.report import CheckReport
from chainrule.core.task import Task
from chainrule.errors import DataError, OutputError, Problem, Where
from chainrule.evaluation.report import model_card, write_report
from chainrule.inference.predict import forward_of
from chainrule.kernels import native
from chainrule.models.accelerate import accelerate
from chainrule.models.adapters import plain_model
from chainrule.models.load import load_classifier, load_language_model, weights_hash
from chainrule.strategies import make_strategy, refuse_misfit, reserved_tokens
from chainrule.strategies.base import Strategy
from chainrule.system.device import choose_device, environment, has_bfloat16, use_threads
from chainrule.system.files import atomic_folder, output_errors, refuse_existing, write_json, write_text
from chainrule.system.lock import only_one
from chainrule.system.memory import PeakMemory, keep_freed, kernel_kills
from chainrule.system.progress import Display
from chainrule.system.seed import seed_everything
from chainrule.tasks import find_task
from chainrule.tasks.conversation import end_replies
from chainrule.tasks.language_model import check_model
from chainrule.tasks.prepare import Prepared, prepare
from chainrule.training.checkpoint import Keeper
from chainrule.training.events import Sink, event_log, require_trackers, trackers
from chainrule.training.job import Job
from chainrule.training.resolve import resolve
from chainrule.training.results import clear, is_finished, judge_validation, save_artifact, summary_of, write_summary
from chainrule.training.trainer import train

INPUTS, STARTED = "inputs.json", "started.json"


def train_recipe(recipe: Recipe, source: Any, out: Path, display: Display, began: float) -> Run:
    """Carry out a recipe.

    Args:
        source: what to read instead of `recipe.data.source`: a path or an object that holds rows; None for neither.
        out: the run folder, which must not exist. It appears, with its recipe inside, once the data has passed
            every check; its artifact appears when it is whole.
        began: the reading of `time.perf_counter` when the work was asked for.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    asked = recipe
    refuse_existing(out)
    require_trackers(recipe.training.track)
    with PeakMemory() as memory:
        job, prepared, recipe = _prepare(recipe, source, display)
        resolved = resolve(job, _with_options(recipe, job.strategy), display)
        with atomic_folder(out) as folder:
            write_text(folder / "recipe.yaml", asked.to_yaml())
            write_text(folder / "resolved.yaml", resolved.to_yaml())
            write_json(folder / "environment.json", _machine(job, resolved))
            write_json(folder / "check.json", prepared.report.as_dict())
            write_json(folder / INPUTS, _inputs(resolved, prepared))
        with only_one(out):
            _carry_out(out, job, resolved, prepared, display, began, memory)
    return Run(out)


def resume_run(out: Path, source: Any, display: Display, began: float) -> Run:
    """Go on with a run that was stopped, from its newest checkpoint, as if it had never been stopped.

    Args:
        out: the run folder.
        source: the rows again, where the run was given an object instead of a path; None otherwise.

    Raises:
        UserError: there is no such run, its data or its model has changed, or another process works on it.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    if not all((out / name).is_file() for name in ("resolved.yaml", INPUTS)):
        got = "no such folder" if not out.exists() else f"a folder without resolved.yaml or {INPUTS}"
        todo = "Give the folder that `chainrule train --out` made, or train anew."
        problem = Problem(where=Where(file=str(out)), expected="a run folder", got=got, todo=todo)
        raise OutputError(f"There is no run to go on with at {out}.", [problem])
    with only_one(out), PeakMemory() as memory:
        if is_finished(out):
            display.say(f"The run {out} is finished; there is nothing to go on with.")
            return Run(out)
        recipe = read_recipe(out / "resolved.yaml")
        require_trackers(recipe.training.track)
        job, prepared, recipe = _prepare(recipe, recipe.data.source if source is None else source, display)
        _refuse_changes(out, recipe, prepared)
        _tell_changes(out, _machine(job, recipe), display)
        clear(out)
        _carry_out(out, job, recipe, prepared, display, began, memory)
    return Run(out)


def _prepare(recipe: Recipe, source: Any, display: Display) -> tuple[Job, Prepared, Recipe]:
    """Data, model and kernels, ready for step one."""
    task, strategy = find_task(recipe.task.name), make_strategy(recipe.strategy)
    refuse_misfit(recipe.strategy.name, task)
    device = choose_device(recipe.training.device)
    threads = use_threads(recipe.training.threads)
    if task.micro_batch_tokens is None:  # where pieces keep memory low, freed memory must not stay
        keep_freed()
    display.say(f"Reading {recipe.data.source or type(source).__name__} …")
    prepared = prepare(recipe, source, task, ("train", "validation"), reserved=reserved_tokens(strategy))
    _tell(prepared.report, prepared.max_length, display)
    recipe = recipe.replace({"model.max_length": prepared.max_length, "training.threads": threads})
    seed_everything(recipe.seed)
    return _job(recipe, task, strategy, prepared, device, display), prepared, recipe


def _carry_out(
    out: Path, job: Job, recipe: Recipe, prepared: Prepared, display: Display, began: float, memory: PeakMemory
) -> None:
    """Train, save, judge, report."""
    training, killed = recipe.training, _was_killed_for_memory(out)
    keeper = Keeper(out, training.checkpoint_minutes, training.keep_checkpoints, halve=killed)
    with output_errors(out):
        write_json(out / STARTED, _started())
        seed_everything(recipe.seed)
        outcome = train(job, recipe, _sink(recipe, out), display, keeper)
        manifest = save_artifact(out, job, recipe, prepared, outcome)
        report = judge_validation(out, job.task, prepared, outcome, recipe, display)
        write_text(out / "artifact" / "README.md", model_card(manifest, report))
        summary = summary_of(out, recipe, outcome, job.task, report)
        write_summary(out, summary, began, memory)
        write_report(out)
        write_summary(out, summary, began, memory)  # with the time of the report


def _machine(job: Job, recipe: Recipe) -> dict[str, Any]:
    device = job.forward.device
    return environment(device, recipe.training.threads or 1) | _numerics(recipe, device)


def _inputs(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What the rows and the base model were when the run began."""
    rows = {
        name: hashlib.sha256(np.ascontiguousarray(split.hashes).tobytes()).hexdigest()
        for name, split in prepared.dataset.splits.items()
    }
    return {"rows_sha256": rows, "base_sha256": weights_hash(recipe.model.name)}


def _refuse_changes(out: Path, recipe: Recipe, prepared: Prepared) -> None:
    """Make sure that rows and base model are those the run began with.

    Raises:
        DataError: they are not.
    """
    before = json.loads((out / INPUTS).read_text(encoding="utf-8"))
    now = _inputs(recipe, prepared)
    changed = [name for name, found in now["rows_sha256"].items() if before["rows_sha256"].get(name) != found]
    problems = [
        Problem(
            where=Where(file=prepared.report.source, field=name),
            expected="the rows that the run began with",
            got="other rows",
            todo="Put the data back as it was, or train anew with --out.",
        )
        for name in changed
    ]
    if before["base_sha256"] != now["base_sha256"]:
        todo = "Put the model back as it was, or train anew with --out."
        where = Where(field="model.name")
        problems.append(Problem("the base model that the run began with", "other weights", todo, where))
    if problems:
        raise DataError(f"The run {out} cannot go on: what it reads has changed since it began.", problems)


def _tell_changes(out: Path, now: dict[str, Any], display: Display) -> None:
    """Say where the last digits may come out otherwise than without the interruption."""
    before = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        display.say(
            f"warning: {', '.join(changed)} changed since the run began (environment.json): results may differ in the "
            "last digits from those of a run without interruption."
        )


def _started() -> dict[str, Any]:
    return {"boot": int(psutil.boot_time()), "kernel_kills": kernel_kills()}


def _was_killed_for_memory(out: Path) -> bool:
    """Whether the system has killed a process for want of memory since this run was last started."""
    if not (out / STARTED).is_file():
        return False
    before, now = json.loads((out / STARTED).read_text(encoding="utf-8")), _started()
    same_boot = abs(before["boot"] - now["boot"]) <= 1
    return same_boot and (now["kernel_kills"] or 0) > (before["kernel_kills"] or 0)


def _tell(report: CheckReport, limit: int, display: Display) -> None:
    for finding in report.findings:
        display.say(f"{finding.severity}: {finding.message}" + (f" {finding.todo}" if finding.todo else ""))
    sizes = ", ".join(f"{split.rows:,} {name}" for name, split in report.splits.items())
    labels = f" {len(report.labels)} labels;" if report.labels else ""
    display.say(f"Data: {sizes} rows;{labels} at most {limit} tokens a row.")


def _numerics(recipe: Recipe, device: torch.device) -> dict[str, str]:
    """The number format, and which kernels there are."""
    on = recipe.training.accelerate and device.type == "cpu"
    kernels = ("compiled" if native.available() else "plain torch") if on else "off"
    return {"precision": recipe.training.precision, "kernels": kernels}


def _with_options(recipe: Recipe, strategy: Strategy) -> Recipe:
    """With every option of the strategy written out, those that it chose on seeing the model included."""
    return recipe.replace({"strategy.options": strategy.options.model_dump(mode="json")})


def _job(
    recipe: Recipe, task: Task, strategy: Strategy, prepared: Prepared, device: torch.device, display: Display
) -> Job:
    model = strategy.prepare(_load(recipe, task, prepared).to(device), display.say)
    targets = prepared.encoded["train"].targets
    if targets is None:
        raise DataError("The training rows have no labels.")
    if task.prepare_head is not None:
        task.prepare_head(model, targets)
    if recipe.training.accelerate:
        if device.type == "cpu" and native.must_build():
            display.say("Compiling the CPU kernels, once: some seconds …")
        accelerate(plain_model(model), device)
    fast = "bfloat16" if has_bfloat16(device) else "float32"
    return Job(
        model=model,
        task=task,
        objective=task.objective(recipe.loss, targets),
        strategy=strategy,
        train=prepared.encoded["train"],
        validation=prepared.encoded["validation"],
        forward=forward_of(model, prepared.tokenizer, device, fast),
    )


def _load(recipe: Recipe, task: Task, prepared: Prepared) -> Any:
    if task.head == "language-model":
        model = load_language_model(recipe.model.name, recipe.structure)
        check_model(model)
        end_replies(model, prepared.tokenizer)
        return model
    return load_classifier(
        recipe.model.name,
        prepared.tokenizer,
        prepared.dataset.labels,
        task.problem_type,
        recipe.structure,
        seed=recipe.seed,
    )


def _sink(recipe: Recipe, out: Path) -> Sink:
    sinks = [event_log(out / "events.jsonl"), *trackers(recipe.training.track, out)]

    def write(event: dict[str, Any]) -> None:
        for sink in sinks:
            sink(event)

    return write
