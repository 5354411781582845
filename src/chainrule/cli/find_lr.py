"""chainrule find-lr"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    display,
    print_json,
    print_line,
    print_table,
    settings_of,
)
from chainrule.core.report import RateReport

ROWS = 20  # of the printed table
WIDTH = 40  # of its bars


def find_lr(
    data: Annotated[str | None, typer.Argument(help="A file, a folder, or a catalog or hub name.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file; flags override it.")] = None,
    out: Annotated[Path | None, typer.Option(help="An HTML page with the plot.")] = None,
    model: Annotated[str | None, typer.Option(help="A catalog name, a folder or a hub name.")] = None,
    task: Annotated[str | None, typer.Option(help="What a row means; see `chainrule show tasks`.")] = None,
    strategy: Annotated[str | None, typer.Option(help="full, partial, head, lora; see `show strategies`.")] = None,
    low: Annotated[float, typer.Option(help="The lowest learning rate to try.")] = 1e-7,
    high: Annotated[float, typer.Option(help="The highest.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps from the one to the other.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    text: Text = None,
    text_a: TextA = None,
    text_b: TextB = None,
    label: Label = None,
    score: Score = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row may have.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(help="stop (the default) or skip.")] = None,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Find out which learning rates suit a training, by a short one whose learning rate grows from step to step."""
    columns = {"text": text, "text_a": text_a, "text_b": text_b, "label": label, "score": score}
    flags: dict[str, Any] = {
        "task": task,
        "model.name": model,
        "model.max_length": max_length,
        "strategy": strategy,
        "data.on_bad_row": on_bad_row,
        "seed": seed,
        **{f"data.fields.{name}": column for name, column in columns.items()},
    }
    settings = settings_of(flags, assignments)
    report = api.find_learning_rate(
        data, recipe=recipe, out=out, tried=(low, high, steps), settings=settings, display=display()
    )
    if as_json:
        print_json(report.as_dict())
        return
    _print(report)
    if out is not None:
        print_line(f"plot: {out}")


def _print(report: RateReport) -> None:
    print_table(f"{report.model}, {report.strategy}, on {report.data}", ["learning rate", "loss", ""], _rows(report))
    print_line(f"{len(report.losses)} steps; no higher rates were tried, as {report.stopped}.")
    if report.suggestion is None:
        print_line("The loss never fell. Check the data, or try another range: --low and --high.")
        return
    print_line(f"The loss was lowest at {report.lowest:.1e} and fell the fastest at {report.steepest:.1e}.")
    print_line(f"suggestion, a tenth of the former: --set optimizer.learning_rate={report.suggestion:.1e}")


def _rows(report: RateReport) -> list[list[str]]:
    """Some of the learning rates with their smoothed losses, as a number and as a bar over the lowest."""
    smooth = report.smoothed
    lowest = min(smooth)
    worst = max(smooth[: smooth.index(lowest) + 1])
    bars = [round(WIDTH * (loss - lowest) / (worst - lowest or 1.0)) for loss in smooth]
    return [
        [f"{rate:.1e}", f"{loss:.4f}", "█" * bar if bar <= WIDTH else "█" * WIDTH + " …"]
        for rate, loss, bar in list(zip(report.learning_rates, smooth, bars, strict=True))[:: -(-len(bars) // ROWS)]
    ]
