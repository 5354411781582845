"""From a recipe to a run folder: check, encode, resolve, train, save, judge, report."""

from __future__ import annotations

import time
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from chainrule.core.artifact import MANIFEST, ROWS, Manifest, Run
from chainrule.core.recipe import Recipe
from chainrule.core.report import CheckReport, EvaluationReport
from chainrule.core.task import Predictions, Task
from chainrule.data.load import Dataset
from chainrule.data.split import Cut
from chainrule.errors import DataError
from chainrule.evaluation.baselines import UNTUNED, fit_baselines
from chainrule.evaluation.compare import judge
from chainrule.evaluation.report import model_card, write_report
from chainrule.inference.predict import forward_of
from chainrule.kernels import native
from chainrule.models.accelerate import accelerate, restore
from chainrule.models.adapters import plain_model
from chainrule.models.inspect import count_parameters
from chainrule.models.load import load_classifier, load_language_model, weights_hash
from chainrule.models.save import save_model, weights_file
from chainrule.strategies import make_strategy
from chainrule.strategies.base import Strategy
from chainrule.system.device import choose_device, environment, has_bfloat16, use_threads
from chainrule.system.files import (
    atomic_folder,
    atomic_path,
    output_errors,
    refuse_existing,
    sha256,
    write_json,
    write_text,
)
from chainrule.system.memory import PeakMemory, keep_freed
from chainrule.system.progress import Display
from chainrule.system.seed import seed_everything
from chainrule.tasks import find_task
from chainrule.tasks.conversation import end_replies
from chainrule.tasks.language_model import check_model
from chainrule.tasks.prepare import Prepared, prepare
from chainrule.training.events import Sink, event_log, require_trackers, trackers
from chainrule.training.job import Job
from chainrule.training.resolve import resolve
from chainrule.training.trainer import Outcome, train
from chainrule.version import __version__


def train_recipe(recipe: Recipe, source: Any, out: Path, display: Display, began: float) -> Run:
    """Carry out a recipe.

    Args:
        source: what to read instead of `recipe.data.source`: a path or an object that holds rows; None for neither.
        out: the run folder, which must not exist. It appears, with its recipe inside, once the data has passed
            every check; its artifact appears when it is whole.
        began: the reading of `time.perf_counter` when the work was asked for.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong.
    """
    asked = recipe
    refuse_existing(out)
    require_trackers(recipe.training.track)
    task, strategy = find_task(recipe.task.name), make_strategy(recipe.strategy)
    device = choose_device(recipe.training.device)
    threads = use_threads(recipe.training.threads)
    if task.micro_batch_tokens is None:  # where pieces keep memory low, freed memory must not stay
        keep_freed()
    with PeakMemory() as memory:
        display.say(f"Reading {recipe.data.source or type(source).__name__} …")
        prepared = prepare(recipe, source, task, ("train", "validation"))
        _tell(prepared.report, prepared.max_length, display)
        recipe = recipe.replace({"model.max_length": prepared.max_length, "training.threads": threads})
        seed_everything(recipe.seed)
        job = _job(recipe, task, strategy, prepared, device, display)
        resolved = resolve(job, _with_options(recipe, strategy), display)
        machine = environment(device, threads) | _numerics(resolved, device)
        with atomic_folder(out) as folder:
            write_text(folder / "recipe.yaml", asked.to_yaml())
            write_text(folder / "resolved.yaml", resolved.to_yaml())
            write_json(folder / "environment.json", machine)
            write_json(folder / "check.json", prepared.report.as_dict())
        with output_errors(out):
            seed_everything(recipe.seed)
            outcome = train(job, resolved, _sink(resolved, out), display)
            manifest = _save_artifact(out, job, resolved, prepared, outcome)
            report = _judge(out, task, prepared, outcome, resolved, display)
            write_text(out / "artifact" / "README.md", model_card(manifest, report))
            summary = _summary(out, resolved, outcome, task, report)
            _write_summary(out, summary, began, memory)
            write_report(out)
            _write_summary(out, summary, began, memory)  # with the time of the report
    return Run(out)


def _write_summary(out: Path, summary: dict[str, Any], began: float, memory: PeakMemory) -> None:
    times = {"seconds_total": round(time.perf_counter() - began, 3), "peak_memory_mb": memory.peak_mb}
    write_json(out / "summary.json", summary | times)


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
    model = strategy.prepare(_load(recipe, task, prepared), display.say)
    targets = prepared.encoded["train"].targets
    if targets is None:
        raise DataError("The training rows have no labels.")
    if task.prepare_head is not None:
        task.prepare_head(model, targets)
    model.to(device)
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


def _save_artifact(out: Path, job: Job, recipe: Recipe, prepared: Prepared, outcome: Outcome) -> Manifest:
    restore(plain_model(outcome.model))
    base = _base_name(recipe.model.name) or ""
    limit = prepared.max_length if job.task.head == "classifier" else None
    with atomic_folder(out / "artifact") as folder:
        loads_in = save_model(folder, outcome.model, prepared.tokenizer, max_length=limit, base=base)
        manifest = _manifest(folder, recipe, prepared, outcome, loads_in)
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        write_text(folder / "README.md", model_card(manifest, None))
        with atomic_path(folder / ROWS) as path:
            save_file(_row_arrays(prepared.dataset), path)
    return manifest


def _manifest(
    folder: Path, recipe: Recipe, prepared: Prepared, outcome: Outcome, loads_in: tuple[str, ...]
) -> Manifest:
    dataset, task = prepared.dataset, find_task(recipe.task.name)
    plain = recipe.model_dump(mode="json")
    for section, key in (("data", "source"), ("model", "name")):
        plain[section][key] = _base_name(plain[section][key])
    return Manifest(
        chainrule_version=__version__,
        task=task.name,
        labels=dataset.labels,
        inputs=tuple(dataset.splits["train"].inputs),
        fields=dataset.fields,
        max_length=prepared.max_length,
        base_model=plain["model"]["name"],
        base_sha256=weights_hash(recipe.model.name),
        recipe=plain,
        metrics=outcome.metrics,
        primary_metric=task.primary_metric,
        data={
            "fingerprint": dataset.fingerprint,
            "rows": {name: len(split.table) for name, split in dataset.splits.items()},
            "cut_sha256": dataset.cut.sha256 if dataset.cut else None,
        },
        loads_in=loads_in,
        weights_sha256=sha256(weights_file(folder)),
    )


def _base_name(name: str | None) -> str | None:
    """A path's last part; catalog and hub names stay whole."""
    return PurePath(name).name if name and Path(name).exists() else name


def _row_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    arrays = {f"seen/{name}": split.hashes for name, split in dataset.splits.items()}
    cut: Cut | None = dataset.cut
    return arrays | ({f"cut/{name}": array for name, array in cut.arrays().items()} if cut else {})


def _judge(
    out: Path, task: Task, prepared: Prepared, outcome: Outcome, recipe: Recipe, display: Display
) -> EvaluationReport:
    baselines, chosen = _baselines(out, task, prepared, outcome, recipe, display)
    targets = prepared.encoded["validation"].targets
    if targets is None:
        raise DataError("The validation rows have no targets.")
    metrics, scores, verdict, detail = judge(
        task, targets, outcome.predictions, baselines, chosen=chosen, labels=prepared.dataset.labels
    )
    report = EvaluationReport(
        artifact=out.name,
        task=task.name,
        data=prepared.report.source,
        split="validation",
        metrics=metrics,
        primary_metric=task.primary_metric,
        baselines=scores,
        verdict=verdict,
        rows=len(targets),
        detail=detail,
    )
    (out / "evaluations").mkdir()
    write_json(out / "evaluations" / "validation.json", report.as_dict())
    return report


def _baselines(
    out: Path, task: Task, prepared: Prepared, outcome: Outcome, recipe: Recipe, display: Display
) -> tuple[dict[str, Predictions], str]:
    """What the model is compared with on validation, and which of it the verdict is about."""
    if outcome.untuned is not None:
        return {UNTUNED: outcome.untuned}, UNTUNED
    train_split, validation = (prepared.dataset.splits[name] for name in ("train", "validation"))
    display.say("Fitting the cheap baselines on the same training rows …")
    baselines = fit_baselines(
        task,
        prepared.dataset.labels,
        (train_split.inputs, train_split.targets),
        (validation.inputs, validation.targets),
        seed=recipe.seed,
    )
    with atomic_folder(out / "baselines") as folder:
        baselines.save(folder)
    return baselines.predict(validation.inputs), baselines.best


def _summary(out: Path, recipe: Recipe, outcome: Outcome, task: Task, report: EvaluationReport) -> dict[str, Any]:
    return {
        "run": str(out),
        "artifact": str(out / "artifact"),
        "task": task.name,
        "model": recipe.model.name,
        "strategy": recipe.strategy.name,
        "trained_parameters": outcome.trained_parameters,
        "parameters": count_parameters(outcome.model),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "stopped": outcome.stopped,
        "metrics": outcome.metrics,
        "primary_metric": task.primary_metric,
        "precision": recipe.training.precision,
        "seconds": round(outcome.seconds, 3),
        "verdict": report.verdict.text,
    }
