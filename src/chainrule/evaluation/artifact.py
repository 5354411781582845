"""Judge an artifact on labelled data: its own recorded test rows, another split, or new rows."""

from __future__ import annotations

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
from chainrule.data.load import Labelled, load_labelled
from chainrule.data.split import Cut
from chainrule.errors import DataError, ModelError, Problem, Where
from chainrule.evaluation.baselines import UNTUNED
from chainrule.evaluation.compare import judge
from chainrule.evaluation.fitted import Fitted, read_fitted
from chainrule.inference.predict import Predictor, load_predictor, predict_encoded, untuned, with_references
from chainrule.system.files import output_errors, write_json
from chainrule.system.progress import Display
from chainrule.tasks.prepare import EncodedSplit, encode_split, require_usable


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
    rows = _read(artifact, predictor, source, spec, split)
    findings = list(rows.findings)
    part = rows.split if limit is None else rows.split.take(np.arange(min(limit, len(rows.split))))
    shown = None if rows.name == "all" else rows.name
    if lacking := [name for name in artifact.manifest.inputs if name not in part.inputs]:
        problem = Problem("the fields that the model was trained on", f"no {', '.join(lacking)}", "Give such rows.")
        raise DataError("The rows are not such as the model was trained on.", [problem])
    part = replace(part, inputs={name: part.inputs[name] for name in artifact.manifest.inputs})
    done = encode_split(predictor.task, predictor.tokenizer, part, artifact.manifest.max_length, shown, spec.on_bad_row)
    require_usable(done)
    findings += done.findings
    encoded, targets = done.encoded, done.encoded.targets
    if targets is None:
        raise DataError("The rows to evaluate on have no labels.")
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
    return EvaluationReport(
        artifact=artifact.path.name if artifact.run_folder is None else artifact.run_folder.name,
        task=predictor.task.name,
        data=spec.source or type(source).__name__,
        split=rows.name,
        metrics=metrics,
        primary_metric=predictor.task.primary_metric,
        baselines=baseline_metrics,
        verdict=verdict,
        rows=len(targets),
        limit=limit,
        detail=detail,
        findings=tuple(findings),
    )


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
        spec.model_copy(update={"clean": artifact.clean, **artifact.fractions}),
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
    if predictor.task.free is not None:
        found = predictor.task.free(rows.encoded)
        return found, next(iter(found)), []
    try:
        with untuned(predictor) as forward, display.bar("evaluating the untuned model", len(rows.encoded)) as bar:
            return {UNTUNED: predict_encoded(forward, rows.encoded, predictor.task.read, bar)}, UNTUNED, []
    except ModelError as error:
        message = f"The untuned model cannot be compared with. {error}"
        return {}, None, [finding("no-baseline", "warning", message)]


def _baselines(artifact: Artifact) -> Fitted | None:
    folder = artifact.run_folder / "baselines" if artifact.run_folder else None
    return read_fitted(folder, artifact.manifest) if folder is not None and folder.is_dir() else None
