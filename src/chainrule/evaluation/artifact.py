"""Judge an artifact on labelled data: its own recorded test rows, another split, or new rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from chainrule.core.artifact import ROWS, Artifact
from chainrule.core.recipe import Data, parse_options
from chainrule.core.report import EvaluationReport, Finding
from chainrule.core.task import Predictions
from chainrule.data.flaws import finding
from chainrule.data.load import Labelled, Split, load_labelled
from chainrule.data.split import Cut
from chainrule.errors import DataError, ModelError, Problem, Where
from chainrule.evaluation.baselines import UNTUNED
from chainrule.evaluation.compare import best_of, judge
from chainrule.evaluation.fitted import Fitted, read_fitted
from chainrule.evaluation.written import sample, with_texts
from chainrule.inference.predict import (
    Predictor,
    load_predictor,
    said_of,
    task_options,
    untuned,
    with_references,
)
from chainrule.system.files import output_errors, write_json
from chainrule.system.progress import Display
from chainrule.tasks.prepare import EncodedSplit, encode_split, require_usable
from chainrule.tasks.suited import settled


def evaluate_artifact(
    artifact: Artifact, source: Any, spec: Data, *, split: str | None, limit: int | None, display: Display
) -> EvaluationReport:
    """Score an artifact and its baselines on the same rows, and say whether it is better.

    Args:
        split: the split to read; None means "test" where there is one, and all rows of a new single file.
        limit: use the first rows only.

    Raises:
        DataError: the rows are wrong, or there is no such split.
    """
    predictor = load_predictor(artifact)
    name, done = labelled_rows(predictor, source, spec, split, limit)
    findings = list(done.findings)
    encoded, targets = done.encoded, done.encoded.targets
    if predictor.task.reference is not None:
        with untuned(predictor) as forward, display.bar("evaluating the model before training", len(encoded)) as bar:
            encoded = with_references(forward, encoded, predictor.task, bar)
    with display.bar("evaluating", len(encoded)) as bar:
        predictions = predictor.predict(encoded, bar)
    scores, chosen, told = _compared_with(predictor, done, display)
    findings += told
    metrics, baseline_metrics, verdict, detail = judge(
        predictor.task, targets, predictions, scores, chosen=chosen, labels=artifact.manifest.labels
    )
    report = EvaluationReport(
        artifact=artifact.path.name if artifact.run_folder is None else artifact.run_folder.name,
        task=predictor.task.name,
        data=spec.source or type(source).__name__,
        split=name,
        metrics=metrics,
        primary_metric=predictor.task.primary_metric,
        baselines=baseline_metrics,
        verdict=verdict,
        rows=len(targets),
        limit=limit,
        detail=detail,
        findings=tuple(findings),
    )
    return _with_texts(report, predictor, done.split, display)


def labelled_rows(
    predictor: Predictor, source: Any, spec: Data, split: str | None, limit: int | None
) -> tuple[str, EncodedSplit]:
    """Rows with targets as the model reads them, with all that was found in them.

    Args:
        split, limit: as in `evaluate_artifact`.

    Returns:
        The name of the split, "all" for a new single file; the rows.

    Raises:
        DataError: the rows are wrong, or there is no such split.
    """
    manifest = predictor.artifact.manifest
    rows = _read(predictor.artifact, predictor, source, spec, split)
    part = rows.split if limit is None else rows.split.take(np.arange(min(limit, len(rows.split))))
    shown = None if rows.name == "all" else rows.name
    if not predictor.task.embeds:  # what was trained on pairs can be judged on labelled texts, too
        if lacking := [name for name in manifest.inputs if name not in part.inputs]:
            problem = Problem("the fields that the model was trained on", f"no {', '.join(lacking)}", "Give such rows.")
            raise DataError("The rows are not such as the model was trained on.", [problem])
        part = replace(part, inputs={name: part.inputs[name] for name in manifest.inputs})
    done = encode_split(predictor.task, predictor.tokenizer, part, manifest.max_length, shown, spec.on_bad_row)
    require_usable(done)
    if done.encoded.targets is None:
        raise DataError("The rows to evaluate on have no labels.")
    return rows.name, replace(done, findings=(*rows.findings, *done.findings))


def _with_texts(report: EvaluationReport, predictor: Predictor, split: Split, display: Display) -> EvaluationReport:
    """The report with what the model writes for some rows, and what it wrote before step one."""
    task, artifact = predictor.task, predictor.artifact
    options = settled(task, task_options(artifact), str(artifact.path))
    found = sample(task, options, predictor.tokenizer, split, artifact.manifest.max_length)
    if found is None:
        return report
    model, before = found.written_by(predictor.forward, "writing", display), None
    with suppress(ModelError), untuned(predictor) as forward:  # that it is not to be had has been told
        before = found.written_by(forward, "writing by the untuned model", display)
    return with_texts(report, found, split, model, before)


def keep_report(artifact: Artifact, report: EvaluationReport) -> Path | None:
    """Write the report into the artifact's run folder; a part of the rows is not kept.

    Other data than the model was trained on get their own name in front, so that they never replace the run's own
    test rows.

    Returns:
        Where it was written, or None.

    Raises:
        OutputError: the run folder cannot be written.
    """
    run = artifact.run_folder
    if run is None or report.limit is not None:
        return None
    trained_on = artifact.manifest.recipe.get("data", {}).get("source")
    same = report.split != "all" and PurePath(report.data).name == PurePath(str(trained_on)).name
    name = report.split if same else f"{PurePath(report.data).stem or 'data'}-{report.split}"
    path = run / "evaluations" / f"{name}.json"
    with output_errors(path):
        path.parent.mkdir(exist_ok=True)
        write_json(path, report.as_dict())
    return path


def recorded_rows(artifact: Artifact) -> tuple[Cut | None, dict[str, np.ndarray]]:
    """The recorded cut, and the input hashes of each split the model was made with.

    Raises:
        ModelError: the file is damaged.
    """
    file = artifact.path / ROWS
    if not file.is_file():
        return None, {}
    try:
        arrays = load_file(file)
        strange = [name for name, array in arrays.items() if array.dtype != np.uint64 or array.ndim != 1]
        reason = f"other arrays: {', '.join(strange[:3])}" if strange else ""
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = str(error)[:200]
    if reason:
        todo = "Take a copy of the artifact that is whole, or leave the file out."
        problem = Problem("hashes of rows as safetensors", reason, todo, Where(file=str(file)))
        raise ModelError(f"Cannot read {ROWS} in {artifact.path}.", [problem])
    seen = {name.removeprefix("seen/"): array for name, array in arrays.items() if name.startswith("seen/")}
    cut = {name.removeprefix("cut/"): array for name, array in arrays.items() if name.startswith("cut/")}
    sha256 = artifact.manifest.data.get("cut_sha256")
    return (Cut.from_arrays(cut, sha256) if cut else None), seen


def _read(artifact: Artifact, predictor: Predictor, source: Any, spec: Data, split: str | None) -> Labelled:
    cut, seen = recorded_rows(artifact)
    manifest = artifact.manifest
    return load_labelled(
        source,
        split,
        spec.model_copy(update={"clean": artifact.clean, **artifact.cutting}),
        predictor.task,
        fields=manifest.fields,
        labels=manifest.labels,
        recorded_cut=cut,
        known_hashes=seen,
        options=parse_options(predictor.task.options, artifact.task, "task"),
    )


def _compared_with(
    predictor: Predictor, rows: EncodedSplit, display: Display
) -> tuple[dict[str, Predictions], str | None, list[Finding]]:
    """Baselines' predictions of the same rows, the one the verdict is about, and what to know of them."""
    if predictor.task.baseline == "fitted":
        baselines = _baselines(predictor.artifact)
        if baselines is None:
            return {}, None, []
        return baselines.predict(rows.split.inputs), baselines.best, [*baselines.findings()]
    task, told = predictor.task, list[Finding]()
    found: dict[str, Predictions] = {}
    if task.baseline == "untuned":
        try:
            with untuned(predictor) as forward, display.bar("evaluating the untuned model", len(rows.encoded)) as bar:
                found[UNTUNED] = said_of(forward, rows.encoded, task, bar)
        except ModelError as error:
            message = f"The untuned model cannot be compared with. {error}"
            told.append(finding("no-baseline", "warning", message))
    found |= {} if task.free is None else task.free(rows.encoded)
    return found, best_of(task, rows.encoded.targets, found), told


def _baselines(artifact: Artifact) -> Fitted | None:
    folder = artifact.run_folder / "baselines" if artifact.run_folder else None
    return read_fitted(folder, artifact.manifest) if folder is not None and folder.is_dir() else None
