"""What a run leaves behind: the artifact, the verdict on validation, the summary."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from chainrule.core.artifact import MANIFEST, REFERENCE, ROWS, Manifest
from chainrule.core.recipe import Recipe, parse_options
from chainrule.core.report import EvaluationReport, Finding
from chainrule.core.task import Predictions, Task
from chainrule.data.load import Dataset
from chainrule.data.split import Cut
from chainrule.errors import DataError
from chainrule.evaluation.baselines import UNTUNED
from chainrule.evaluation.compare import best_of, judge
from chainrule.evaluation.fitted import Fitted, fit
from chainrule.evaluation.report import model_card
from chainrule.evaluation.written import sample, with_texts
from chainrule.models.inspect import count_parameters
from chainrule.models.save import save_model, weights_file
from chainrule.models.scratch import first_weights_hash
from chainrule.monitoring.features import gauge_of
from chainrule.monitoring.reference import MOST, Reference, reference_of
from chainrule.monitoring.said import said_of
from chainrule.system.files import atomic_folder, atomic_path, sha256, write_json, write_text
from chainrule.system.memory import PeakMemory
from chainrule.system.progress import Display
from chainrule.tasks import find_task
from chainrule.tasks.prepare import Prepared
from chainrule.training.job import Job, forward_for
from chainrule.training.trainer import Outcome
from chainrule.version import __version__

_LAST = ("summary.json", "report.html")  # written when all else is there


def is_finished(out: Path) -> bool:
    """Whether a run folder holds everything."""
    return all((out / name).is_file() for name in _LAST)


def clear(out: Path) -> None:
    """Remove what an interrupted run has left half done after its last step; it is made again."""
    for name in _LAST:
        (out / name).unlink(missing_ok=True)
    for path in [out / "artifact", out / "baselines", out / "evaluations", *out.glob(".*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def save_artifact(out: Path, job: Job, recipe: Recipe, prepared: Prepared, outcome: Outcome) -> Manifest:
    """Put the tuned model with its manifest into the run folder, as plain libraries load it."""
    base = _base_name(recipe.model.name) or ""
    limit = None if job.task.head == "language-model" or job.task.sees else prepared.max_length
    with atomic_folder(out / "artifact") as folder:
        loads_in = save_model(folder, outcome.model, prepared.tokenizer, max_length=limit, base=base)
        manifest = _manifest(folder, recipe, prepared, outcome, loads_in)
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        write_text(folder / "README.md", model_card(manifest, None))
        with atomic_path(folder / ROWS) as path:
            save_file(_row_arrays(prepared.dataset), path)
        reference = _reference(job, prepared, outcome)
        if reference is not None:
            write_text(folder / REFERENCE, reference.model_dump_json(indent=1) + "\n")
    return manifest


def _reference(job: Job, prepared: Prepared, outcome: Outcome) -> Reference | None:
    """What is usual among the validation rows, in counts and moments.

    None where the task has nothing to count, or where rows at work are others: candidates one by one, not whole lists.
    """
    if job.task.writes or job.task.embeds or job.task.target.kind == "relevances":
        return None
    encoded = prepared.encoded["validation"]
    rows = np.unique(np.linspace(0, len(encoded) - 1, min(MOST, len(encoded))).astype(int))
    kind, targets = job.task.target.kind, encoded.targets
    true = targets[rows] if kind == "class" and targets is not None else None
    said = said_of(kind, prepared.dataset.labels, outcome.predictions.take(rows), true)
    if job.task.sees:
        return reference_of("validation", said, None)
    features = gauge_of(prepared.tokenizer, outcome.model).measure(encoded.take(rows))
    return reference_of("validation", said, features)


def _manifest(
    folder: Path, recipe: Recipe, prepared: Prepared, outcome: Outcome, loads_in: tuple[str, ...]
) -> Manifest:
    dataset, task = prepared.dataset, find_task(recipe.task.name)
    plain = recipe.model_dump(mode="json")
    for section, key in (("data", "source"), ("model", "name")):
        plain[section][key] = _base_name(plain[section][key])
    plain["distillation"]["teachers"] = [_base_name(path) for path in plain["distillation"]["teachers"]]
    if further := plain["distillation"]["unlabelled"]:
        plain["distillation"]["unlabelled"] = _base_name(further)
    options = plain["model"]["options"]
    options |= {name: _base_name(options[name]) for name in ("vectors", "pieces") if options.get(name)}
    return Manifest(
        chainrule_version=__version__,
        task=task.name,
        labels=dataset.labels,
        inputs=tuple(dataset.splits["train"].inputs),
        fields=dataset.fields,
        max_length=prepared.max_length,
        base_model=plain["model"]["name"],
        base_sha256=first_weights_hash(recipe.model),
        recipe=plain,
        metrics=outcome.metrics,
        primary_metric=task.primary_metric,
        data={
            "fingerprint": dataset.fingerprint,
            "rows": {name: len(split) for name, split in dataset.splits.items()},
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


def judge_validation(
    out: Path, job: Job, prepared: Prepared, outcome: Outcome, recipe: Recipe, display: Display
) -> EvaluationReport:
    """Compare the tuned model with the cheap baselines, or with the untuned model, on validation."""
    task = job.task
    baselines, chosen, findings = _baselines(out, task, prepared, outcome, recipe, display)
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
        findings=findings,
    )
    if not task.converses:
        report = _with_texts(report, job, prepared, outcome, recipe, display)
    (out / "evaluations").mkdir()
    write_json(out / "evaluations" / "validation.json", report.as_dict())
    return report


def _with_texts(
    report: EvaluationReport, job: Job, prepared: Prepared, outcome: Outcome, recipe: Recipe, display: Display
) -> EvaluationReport:
    """The report with what the model writes of some sources; of another task it is returned as it is."""
    options, split = parse_options(job.task.options, recipe.task, "task"), prepared.dataset.splits["validation"]
    found = sample(job.task, options, prepared.tokenizer, split, prepared.max_length)
    if found is None:
        return report
    forward = replace(forward_for(job, recipe), model=outcome.model)
    return with_texts(report, found, split, found.written_by(forward, "writing", display), None)


def _baselines(
    out: Path, task: Task, prepared: Prepared, outcome: Outcome, recipe: Recipe, display: Display
) -> tuple[dict[str, Predictions], str, tuple[Finding, ...]]:
    """What the model is compared with on validation, which of it the verdict is about, and what to know of it."""
    validation = prepared.encoded["validation"]
    found = {} if outcome.untuned is None else {UNTUNED: outcome.untuned}
    found |= {} if task.free is None else task.free(validation)
    if found:
        return found, str(best_of(task, validation.targets, found)), ()
    baselines = fitted_baselines(task, prepared, recipe, display)
    with atomic_folder(out / "baselines") as folder:
        baselines.save(folder)
    return baselines.predict(prepared.dataset.splits["validation"].inputs), baselines.best, baselines.findings()


def fitted_baselines(task: Task, prepared: Prepared, recipe: Recipe, display: Display) -> Fitted:
    """The cheap baselines of the rows that a model is trained on, chosen between on validation."""
    train_split, validation = (prepared.dataset.splits[name] for name in ("train", "validation"))
    display.say("Fitting the cheap baselines on the same training rows …")
    return fit(
        task,
        prepared.dataset.labels,
        (train_split.inputs, train_split.targets),
        (validation.inputs, validation.targets),
        seed=recipe.seed,
    )


def summary_of(out: Path, recipe: Recipe, outcome: Outcome, task: Task, report: EvaluationReport) -> dict[str, Any]:
    """What `train` prints."""
    expected = recipe.prediction
    predicted = {} if expected is None else {"predicted": expected.model_dump(mode="json")}
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
        **predicted,
    }


def write_summary(out: Path, summary: dict[str, Any], began: float, memory: PeakMemory) -> None:
    """Write summary.json, with the time and memory so far."""
    times = {"seconds_total": round(time.perf_counter() - began, 3), "peak_memory_mb": memory.peak_mb}
    write_json(out / "summary.json", summary | times)
