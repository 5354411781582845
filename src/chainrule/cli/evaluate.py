"""chainrule evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import Json, Label, Score, Text, TextA, TextB, display, print_json, print_line, print_table
from chainrule.core.report import Estimate, EvaluationReport


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder or an artifact folder.")],
    data: Annotated[str | None, typer.Argument(help="Labelled data; by default what the run was trained on.")] = None,
    split: Annotated[str | None, typer.Option(help="The split to score; test by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first rows only.")] = None,
    text: Text = None,
    text_a: TextA = None,
    text_b: TextB = None,
    label: Label = None,
    score: Score = None,
    on_bad_row: Annotated[str | None, typer.Option(help="stop or skip; by default as the model was trained.")] = None,
    as_json: Json = False,
) -> None:
    """Score a fine-tuned model and its baselines on the same rows, and say whether it is better."""
    columns = {"text": text, "text_a": text_a, "text_b": text_b, "label": label, "score": score}
    named = {name: column for name, column in columns.items() if column is not None}
    bad: Any = on_bad_row
    report = api.evaluate(model, data, split=split, limit=limit, fields=named, on_bad_row=bad, display=display())
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)


def _print(report: EvaluationReport) -> None:
    for finding in report.findings:
        print_line(f"{finding.severity}: {finding.message} {finding.todo}".rstrip())
    names = list(report.baselines)
    rows = []
    for metric, estimate in report.metrics.items():
        shown = [_shown(report.baselines[name].get(metric)) for name in names]
        rows.append([metric + (" *" if metric == report.primary_metric else ""), _shown(estimate), *shown])
    title = f"{report.artifact} on {report.rows:,} rows" + (f" of {report.split}" if report.split else "")
    print_table(title + " (95 % intervals)", ["metric", "model", *names], rows)
    texts = report.detail.get("written")
    if texts is not None:
        print_line(f"{', '.join(texts['metrics'])}: of what was written for {texts['rows']:,} of {texts['of']:,} rows.")
    print_line(report.verdict.text)


def _shown(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}…{estimate.high:.3f}]"
