"""chainrule watch"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import Json, display, print_json, print_line, print_table

Window = Annotated[str | None, typer.Option(help="What is looked at together: 15m, 1h, 1d, or rows: 500.")]
Cycle = Annotated[str | None, typer.Option(help="Counts over time repeat themselves after this: 1d, 7d.")]
FalseAlarms = Annotated[
    str | None, typer.Option(help="One false alarm is expected in this stretch: 30d, or rows: 100000.")
]
MonitorRows = Annotated[int | None, typer.Option(help="Predictions that are kept (default 10,000).")]
KeepText = Annotated[str | None, typer.Option(help="Keep the rows' texts for this long, e.g. 7d (default: never).")]
Segment = Annotated[str | None, typer.Option(help="A column whose values are watched label by label.")]
Low = Annotated[float | None, typer.Option(help="Confidence below which a row is worth labelling.")]
Webhook = Annotated[str | None, typer.Option(help="An address that alarms are sent to.")]


def watch(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT [FILE] | show FILE.db | export FILE.db",
            help="A model and a file of rows (else the standard input); or a monitor's file to look at.",
        ),
    ],
    monitor: Annotated[
        Path | None, typer.Option(help="The file that keeps counts, alarms and the latest predictions.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of the lines: jsonl, csv, tsv or lines.")] = None,
    time: Annotated[str | None, typer.Option(help="The column that says when a row happened.")] = None,
    id: Annotated[str | None, typer.Option(help="The column that names a row.")] = None,
    window: Window = None,
    cycle: Cycle = None,
    false_alarms: FalseAlarms = None,
    monitor_rows: MonitorRows = None,
    keep_text: KeepText = None,
    segment: Segment = None,
    low_confidence: Low = None,
    webhook: Webhook = None,
    html: Annotated[Path | None, typer.Option(help="show: write a page.")] = None,
    queue: Annotated[str, typer.Option(help="export: low-confidence or unusual.")] = "low-confidence",
    model: Annotated[str | None, typer.Option(help="export: one of the file's models.")] = None,
    out: Annotated[Path | None, typer.Option(help="export: where to write, a .jsonl file.")] = None,
    as_json: Json = False,
) -> None:
    """Predict rows as they come and raise alarms; look at what a monitor's file says; export rows to be labelled."""
    verb, *rest = words
    if verb == "show" and len(rest) == 1:
        _show(Path(rest[0]), html, as_json)
        return
    if verb == "export" and len(rest) == 1:
        if out is None:
            raise typer.BadParameter("say where to write: --out FILE.jsonl", param_hint="--out")
        found = api.watch_export(rest[0], out, queue=queue, model=model)
        told = f"{found['rows']:,} rows written to {out}, {found['with_text']:,} of them with their texts"
        print_json(found) if as_json else print_line(told)
        return
    if len(rest) > 1:
        raise typer.BadParameter("give a model and at most one file", param_hint="ARTIFACT")
    flags: Any = {"window": window, "cycle": cycle, "false_alarms": false_alarms, "monitor_rows": monitor_rows}
    flags |= {"keep_text": keep_text, "segment": segment, "low_confidence": low_confidence, "webhook": webhook}
    file = monitor or Path(f"{Path(verb).name}.watch.db")
    source = rest[0] if rest else "-"
    result = api.watch(
        verb,
        source,
        monitor=file,
        told=None if as_json else _tell,
        columns=(time, id),
        form=format,
        display=display(),
        **flags,
    )
    if as_json:
        print_json(result | {"monitor": str(file)})
    else:
        refused = f", {result['refused']:,} lines were refused" if result["refused"] else ""
        alarms = len(result["alarms"])
        display().say(f"{result['rows']:,} rows{refused}; {alarms} alarms. chainrule watch show {file}")


def _tell(row: dict[str, Any]) -> None:
    text = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    sys.stdout.flush()


def _show(file: Path, html: Path | None, as_json: bool) -> None:
    found = api.watch_summary(file, html=html)
    if as_json:
        print_json(found)
        return
    for name, model in found["models"].items():
        _print_model(name, model)
    for alarm in reversed(found["alarms"][:20]):
        print_line(f"  alarm, window {alarm['window']}: {alarm['model']}: {alarm['message']}")
    if html is not None:
        print_line(f"page: {html}")


def _print_model(name: str, model: dict[str, Any]) -> None:
    reference = model["reference"]
    beside = "no reference yet" if reference is None else f"beside {reference['rows']:,} rows of {reference['source']}"
    print_line(f"{name}: {model['rows']:,} rows, {model['kept']:,} kept, {beside}")
    feedback, estimate = model["feedback"], model["estimate"]
    if feedback["rows"]:
        print_line(f"  accuracy by feedback: {_share(feedback['accuracy'])}")
        for label, share in feedback["by_predicted_label"].items():
            print_line(f"    where {label} was said: {_share(share)}")
    if estimate is not None:
        both = f"{_share(estimate)}; {100 * estimate['thresholded']:.1f} % by threshold"
        print_line(f"  accuracy that confidence promises: {both}")
    queues = model["queues"]
    print_line(
        f"  worth labelling: {queues['low-confidence']:,} of low confidence, {queues['unusual']:,} unusual; "
        f"{queues['texts']:,} rows with their texts"
    )
    closed = [window for window in model["windows"] if window["closed"]][-5:]
    if closed:
        cells = [
            [
                str(window["number"]),
                f"{window['rows']:,}",
                ", ".join(f"{label} {count:,}" for label, count in window["labels"].items()),
            ]
            for window in closed
        ]
        print_table("the last windows:", ["window", "rows", "labels"], cells)


def _share(share: dict[str, float]) -> str:
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f}, {share['rows']:,} rows)"
