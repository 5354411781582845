"""Cross-validation: every row is predicted by a model that was trained without it, and then the final model is made.

Each fold is an ordinary training, in a folder of its own below the run, and so is the final model. What is chosen by a
clock or a probe is chosen once, for the final model, and holds for the folds, too. Predictions of all folds are judged
together, as those of one split would be: scores such as F1 are then of whole counts (Forman and Scholz, 2010,
Apples-to-apples in cross-validation studies).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chainrule.core.artifact import FOLDS, Artifact, Run
from chainrule.core.recipe import Recipe, read_recipe
from chainrule.core.report import EvaluationReport, Finding, SplitSummary
from chainrule.core.spans import as_arrays, together
from chainrule.core.task import LOWER_IS_BETTER, Predictions, Task
from chainrule.data.folds import FIELD, fold_datasets
from chainrule.data.load import Dataset
from chainrule.errors import ModelError, OutputError, Problem, RecipeError, StoppedError, Where
from chainrule.evaluation.compare import judge
from chainrule.evaluation.quantities import duration
from chainrule.evaluation.report import model_card, write_report
from chainrule.evaluation.verdicts import baseline_name, verdict_text
from chainrule.inference.predict import predict_encoded
from chainrule.system.files import atomic_path, output_errors, read_json, refuse_existing, write_json, write_text
from chainrule.system.lock import only_one
from chainrule.system.memory import PeakMemory
from chainrule.system.progress import Display
from chainrule.tasks import find_task
from chainrule.tasks.prepare import Prepared, encode_split, tokenizer_for
from chainrule.tasks.suited import task_of
from chainrule.training.building import make_job
from chainrule.training.events import require_trackers
from chainrule.training.inputs import refuse_changes, tell_changes
from chainrule.training.job import Job, forward_for, planned_steps, steps_per_epoch
from chainrule.training.resolve import planned_seconds
from chainrule.training.results import clear, fitted_baselines, is_finished
from chainrule.training.run import begin, carry_out, keeper_of, plan, prepare_rows, require_run, train_job

SUMMARY, PREDICTIONS = "summary.json", "predictions.safetensors"
TOLD = "cross_validation"  # the key of a run's summary
MODEL = "model"  # beside the names of baselines
OFF: dict[str, Any] = {
    "training.folds": None,
    "training.track": [],
    "training.profile": False,
    "training.watch_gradients": False,
}


@dataclass(frozen=True)
class Judged:
    """What is known of the rows of one fold.

    Attributes:
        targets: as in `Split`.
        predictions: of the model and of the baselines, by name; none of them has seen the rows.
        summary: what the fold's summary.json holds.
    """

    targets: Any
    predictions: dict[str, Predictions]
    summary: dict[str, Any]


def train_with_folds(recipe: Recipe, source: Any, out: Path, display: Display, began: float) -> Run:
    """Cross-validate a recipe with `training.folds`, then carry it out as usual.

    Args:
        source, out, began: as in `train_recipe`.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong, or there are too few rows.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    refuse_existing(out)
    _refuse_misfit(recipe)
    require_trackers(recipe.training.track)
    with PeakMemory() as memory:
        prepared, chosen = prepare_rows(recipe, source, display, None)
        datasets = _datasets(prepared, chosen)
        job, resolved = plan(chosen, prepared, display)
        _tell_cost(job, resolved, display)
        begin(out, recipe, job, resolved, prepared)
        del job
        with only_one(out):
            _carry_out(out, resolved, prepared, datasets, display, (began, memory))
    return Run(out)


def resume_with_folds(out: Path, source: Any, display: Display, began: float) -> Run:
    """Go on with such a run where it was stopped: in the middle of a fold, between two, or in the final training.

    Args:
        out: the folder of a run that has folds.
        source: as in `resume_run`.

    Raises:
        UserError: its data or its model has changed, or another process works on it.
        StoppedError: Ctrl-C or SIGTERM while steps were made.
    """
    with only_one(out), PeakMemory() as memory:
        if is_finished(out) and TOLD in Run(out).summary:
            display.say(f"The run {out} is finished; there is nothing to go on with.")
            return Run(out)
        recipe = read_recipe(out / "resolved.yaml")
        require_trackers(recipe.training.track)
        prepared, recipe = prepare_rows(recipe, recipe.data.source if source is None else source, display, None)
        refuse_changes(out, recipe, prepared)
        _carry_out(out, recipe, prepared, _datasets(prepared, recipe), display, (began, memory))
    return Run(out)


def has_folds(run: Path) -> bool:
    """Whether a run was begun with folds.

    Raises:
        OutputError: there is no run, or it is one fold of a run.
    """
    require_run(run)
    return read_recipe(run / "resolved.yaml").training.folds is not None


def refuse_again(run: Path) -> None:
    """Refuse to reproduce a run with folds.

    Raises:
        OutputError: it has folds, or there is no run.
    """
    if has_folds(run):
        todo = f"Train anew with the choices it made, and compare: chainrule train --recipe {run / 'resolved.yaml'}"
        problem = Problem("a run of one training", "one with folds", todo, Where(file=str(run)))
        raise OutputError("A cross-validated run cannot be reproduced.", [problem])


def _refuse_misfit(recipe: Recipe) -> None:
    task, minutes = find_task(recipe.task.name), recipe.training.minutes
    if task.baseline != "fitted":
        expected = "a task whose models are compared with baselines fitted on the same folds"
        problem = Problem(expected, task.name, "Leave --folds out, and evaluate on a test split.", Where(field=FIELD))
        raise RecipeError(f"The task {task.name!r} cannot be cross-validated.", [problem])
    if recipe.choice is not None:
        expected = "a strategy that was not chosen by rows that the folds hold out"
        todo = "Remove choice from the recipe if the strategy was found on other rows."
        problem = Problem(expected, f"one that {recipe.choice.by} has found", todo, Where(field="choice"))
        raise RecipeError("The folds would flatter this strategy.", [problem])
    if minutes is not None:
        expected = "the length of each training by epochs or steps, since there will be several"
        todo = "Leave --minutes out; what the folds will cost is told before the first."
        problem = Problem(expected, f"{minutes:g} minutes and folds", todo, Where(field="training.minutes"))
        raise RecipeError("Folds and minutes do not go together.", [problem])


def _datasets(prepared: Prepared, recipe: Recipe) -> list[Dataset]:
    kind, count = find_task(recipe.task.name).target.kind, recipe.training.folds or 0
    return fold_datasets(prepared.dataset, kind, count, recipe.data.validation_fraction, recipe.seed)


def _tell_cost(job: Job, recipe: Recipe, display: Display) -> None:
    count, steps = recipe.training.folds or 0, planned_steps(recipe, len(job.train))
    seconds = duration((count + 1) * planned_seconds(job, recipe)).en
    display.say(
        f"{count} folds and then the final model: {count + 1} trainings of about {steps:,} steps, which take about "
        f"{seconds} in all; loading, validation and baselines come on top."
    )


def _carry_out(
    out: Path,
    recipe: Recipe,
    prepared: Prepared,
    datasets: Sequence[Dataset],
    display: Display,
    since: tuple[float, PeakMemory],
) -> None:
    """What is left of the folds, then of the final model; then both are told together."""
    task, count = task_of(recipe), len(datasets)
    clear(out / FOLDS)
    for number, dataset in enumerate(datasets, start=1):
        folder = out / FOLDS / str(number)
        if not (folder / SUMMARY).is_file():
            rows = {name: len(part) for name, part in dataset.splits.items()}
            display.say(
                f"Fold {number} of {count}: {rows['train']:,} train, {rows['validation']:,} validation rows, "
                f"{rows['test']:,} held out."
            )
            try:
                _train_fold(folder, _fold_recipe(recipe, prepared, dataset), prepared, dataset, display)
            except StoppedError as error:
                raise _stopped(error, out, number, count) from None
            _tell_fold(folder, f"Fold {number} of {count}", task, display)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    truths = [dataset.splits["test"].targets for dataset in datasets]
    judged = [_read(out / FOLDS / str(number), truth) for number, truth in enumerate(truths, start=1)]
    report = _judge(out, task, prepared, judged)
    if not is_finished(out):
        display.say("The final model, trained as without folds:")
        job = make_job(recipe, prepared, display)
        tell_changes(out, job, recipe, display)
        clear(out)
        carry_out(keeper_of(out, recipe), job, recipe, prepared, display, *since)
    _tell_in_run(out, report)


def _fold_recipe(recipe: Recipe, prepared: Prepared, dataset: Dataset) -> Recipe:
    """For as many epochs as the final model is trained."""
    whole, own = (len(rows.splits["train"]) for rows in (prepared.dataset, dataset))
    share = steps_per_epoch(recipe, own) / steps_per_epoch(recipe, whole)
    return recipe.replace({**OFF, "training.steps": max(1, round(planned_steps(recipe, whole) * share))})


def _train_fold(folder: Path, recipe: Recipe, whole: Prepared, dataset: Dataset, display: Display) -> None:
    """Train on the other folds, and keep what the model and the baselines say of this one."""
    prepared = _encoded(whole, recipe, dataset)
    job = make_job(recipe, prepared, display)
    if folder.is_dir():
        refuse_changes(folder, recipe, prepared)
        tell_changes(folder, job, recipe, display)
        clear(folder)
    else:
        begin(folder, recipe, job, recipe, prepared)
    with output_errors(folder):
        outcome = train_job(keeper_of(folder, recipe), job, recipe, display)
        baselines = fitted_baselines(job.task, prepared, recipe, display)
        rows, encoded = dataset.splits["test"], prepared.encoded["test"]
        forward = replace(forward_for(job, recipe), model=outcome.model)
        predictions = {MODEL: predict_encoded(forward, encoded, job.task.read), **baselines.predict(rows.inputs)}
        arrays = {"rows": rows.places.rows, "hashes": rows.hashes, **as_arrays("targets", rows.targets)}
        for name, found in predictions.items():
            arrays |= {f"{name}/{part}": values for part, values in found.arrays().items()}
        with atomic_path(folder / PREDICTIONS) as path:
            save_file(arrays, path)
        summary = {
            "rows": {name: len(part) for name, part in dataset.splits.items()},
            "steps": outcome.steps,
            "best_step": outcome.best_step,
            "seconds": round(outcome.seconds, 3),
            "metrics": {name: job.task.measure(rows.targets, found) for name, found in predictions.items()},
            "baselines_on_validation": baselines.scores,
            "findings": [found.as_dict() for found in baselines.findings()],
        }
        write_json(folder / SUMMARY, summary)  # the last: with it the fold is judged


def _encoded(whole: Prepared, recipe: Recipe, dataset: Dataset) -> Prepared:
    task, bad = task_of(recipe), recipe.data.on_bad_row
    tokenizer, _ = tokenizer_for(recipe, task, dataset.splits["train"])
    encoded = {
        name: encode_split(task, tokenizer, part, whole.max_length, name, bad).encoded
        for name, part in dataset.splits.items()
    }
    sizes = {name: SplitSummary(rows=len(part), file=part.places.file) for name, part in dataset.splits.items()}
    report = whole.report.model_copy(update={"splits": sizes, "findings": (), "cut": None})
    return replace(whole, dataset=dataset, report=report, tokenizer=tokenizer, encoded=encoded)


def _tell_fold(folder: Path, title: str, task: Task, display: Display) -> None:
    scores = {name: found[task.primary_metric] for name, found in read_json(folder / SUMMARY)["metrics"].items()}
    own = scores.pop(MODEL)
    others = ", ".join(f"{baseline_name(name, 'en')} {score:.4f}" for name, score in scores.items())
    display.say(f"{title}: {task.primary_metric} {own:.4f} ({others}).")


def _stopped(error: StoppedError, out: Path, number: int, count: int) -> StoppedError:
    problem = Problem(
        where=Where(file=str(out)),
        expected=f"{count} folds and the final model",
        got=f"{number - 1} judged, and a part of fold {number}; everything so far is kept",
        todo=f"Go on with: chainrule train --resume {out}",
    )
    return StoppedError(f"{error.message.removesuffix('.')} of fold {number}.", [problem], error.exit_code)


def _read(folder: Path, targets: Any) -> Judged:
    try:
        arrays = load_file(folder / PREDICTIONS)
        names = dict.fromkeys(name.partition("/")[0] for name in arrays if "/" in name)
        own = {
            name: {part[len(name) + 1 :]: arrays[part] for part in arrays if part.startswith(f"{name}/")}
            for name in names
        }
        found = {name: Predictions.from_arrays(parts) for name, parts in own.items()}
        return Judged(targets, found, read_json(folder / SUMMARY))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        todo = f"Remove {folder}, and go on with --resume: this fold is trained again."
        problem = Problem("what was predicted of a fold", str(error)[:200], todo, Where(file=str(folder)))
        raise ModelError(f"The predictions in {folder} cannot be read.", [problem]) from error


def _judge(out: Path, task: Task, prepared: Prepared, folds: Sequence[Judged]) -> EvaluationReport:
    """All rows together against the baselines, each predicted by what was fitted without it."""
    pooled = {name: Predictions.joined([fold.predictions[name] for fold in folds]) for name in folds[0].predictions}
    model, targets = pooled.pop(MODEL), together([fold.targets for fold in folds])
    chosen = _better_on_validation(task, folds)
    metrics, baselines, verdict, detail = judge(
        task, targets, model, pooled, chosen=chosen, labels=prepared.dataset.labels
    )
    numbers = detail["verdict"] | {"folds": len(folds)}
    own = [fold.summary["metrics"][MODEL] for fold in folds]
    scores = {name: _spread([scores[name] for scores in own]) for name in own[0]}
    told = {found["message"]: Finding(**found) for fold in folds for found in fold.summary["findings"]}
    return EvaluationReport(
        artifact=out.name,
        task=task.name,
        data=prepared.report.source,
        split=FOLDS,
        metrics=metrics,
        primary_metric=task.primary_metric,
        baselines=baselines,
        verdict=verdict.model_copy(update={"text": verdict_text(numbers, "en")}),
        rows=len(targets),
        detail=detail | {"verdict": numbers, FOLDS: {"count": len(folds), "scores": scores}},
        findings=tuple(told.values()),
    )


def _better_on_validation(task: Task, folds: Sequence[Judged]) -> str:
    """The baseline with the better mean on the validation rows of the folds; the rows that are judged have no say."""
    scores = [fold.summary["baselines_on_validation"] for fold in folds]
    means: dict[str, float] = {name: float(np.mean([found[name] for found in scores])) for name in scores[0]}
    sign = -1.0 if task.primary_metric in LOWER_IS_BETTER else 1.0
    return max(sorted(means), key=lambda name: sign * means[name])


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)), "values": list(values)}


def _tell_in_run(out: Path, report: EvaluationReport) -> None:
    """Evaluation, model card, report page and, last, the summary."""
    with output_errors(out):
        write_json(out / "evaluations" / f"{FOLDS}.json", report.as_dict())
        write_text(out / "artifact" / "README.md", model_card(Artifact.read(out / "artifact").manifest, report))
        folds = report.detail[FOLDS]
        told = {
            "folds": folds["count"],
            "rows": report.rows,
            "scored": f"{folds['count']} models of the same recipe, each on the rows it was trained without; "
            "not the final model",
            "metrics": report.as_dict()["metrics"],
            "over_folds": {
                name: {"mean": spread["mean"], "deviation": spread["deviation"]}
                for name, spread in folds["scores"].items()
            },
            "verdict": report.verdict.text,
        }
        write_report(out)
        write_json(out / SUMMARY, Run(out).summary | {TOLD: told})
