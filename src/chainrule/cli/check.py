"""chainrule check"""

from __future__ import annotations

from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.output import (
    Json,
    Label,
    Score,
    Set,
    Text,
    TextA,
    TextB,
    print_json,
    print_line,
    print_marked,
    print_table,
    settings_of,
)
from chainrule.core.report import CheckReport


def check(
    data: Annotated[str, typer.Argument(help="A file, a folder with split files, or a catalog or hub name.")],
    task: Annotated[str, typer.Option(help="What a row means; see `chainrule show tasks`.")] = "text-classification",
    text: Text = None,
    text_a: TextA = None,
    text_b: TextB = None,
    label: Label = None,
    score: Score = None,
    model: Annotated[str | None, typer.Option(help="Also count tokens with this model's tokenizer.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tell which rows have more tokens than this.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(help="stop (the default) or skip.")] = None,
    show_mask: Annotated[
        int, typer.Option(min=0, help="Show so many training rows with the tokens that are learned.")
    ] = 1,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Look at labelled data before anything is trained on it: what is wrong, what is odd, row by row."""
    columns = {"text": text, "text_a": text_a, "text_b": text_b, "label": label, "score": score}
    fields = {name: column for name, column in columns.items() if column is not None}
    settings = settings_of({"data.on_bad_row": on_bad_row}, assignments)
    report = api.check(
        data, task=task, fields=fields, model=model, max_length=max_length, settings=settings, shown=show_mask
    )
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(2)


def _print(report: CheckReport) -> None:
    rows = []
    for name, split in report.splits.items():
        labels = ", ".join(f"{label} {count:,}" for label, count in list(split.labels.items())[:8])
        more = f", … {len(split.labels)} in all" if len(split.labels) > 8 else ""
        rows.append([name, f"{split.rows:,}", labels + more])
    print_table(f"{report.source} as {report.task}", ["split", "rows", "labels"], rows)
    print_line("columns: " + ", ".join(f"{field} = {column}" for field, column in report.fields.items()))
    for finding in report.findings:
        places = f" (rows {', '.join(map(str, finding.rows[:10]))}{', …' if finding.count > 10 else ''})"
        print_line(f"{finding.severity}: {finding.message}{places if finding.rows else ''} {finding.todo}".rstrip())
    for problem in report.problems[:20]:
        print_line(f"  - {problem}")
    if len(report.problems) > 20:
        print_line(f"  … and {len(report.problems) - 20} more (all of them with --json)")
    for name, split in report.splits.items():
        if "tokens_learned" in split.lengths:
            learned, read = split.lengths["tokens_learned"], split.lengths["tokens_read"]
            share = f"{100 * learned / max(read, 1):.1f} %"
            print_line(f"{name}: {learned:,.0f} of {read:,.0f} tokens ({share}) are learned")
    for example in report.examples:
        print_line(f"row {example.row} of {example.split} as the model reads it, what is learned between ⟦ and ⟧:")
        print_marked(example.text)
    print_line("The data can be used." if report.ok else "The data cannot be used as it is.")
