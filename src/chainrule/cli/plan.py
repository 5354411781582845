"""chainrule plan"""

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
from chainrule.core.plan import Option, PlanReport

NO_GO = 3


def plan(
    data: Annotated[str, typer.Argument(help="A file, a folder, or a catalog or hub name.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the recipe, with its reasons.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A catalog name, a folder or a hub name; repeatable, to choose from.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What a row means; see `chainrule show tasks`.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Plan for this one; see `show strategies`.")] = None,
    minutes: Annotated[float | None, typer.Option(help="That the training may take.")] = None,
    memory: Annotated[float | None, typer.Option(help="Gigabytes that it may take.")] = None,
    goal: Annotated[str, typer.Option(help="What matters most: quality, speed or size.")] = "quality",
    epochs: Annotated[float | None, typer.Option(help="Plan for so many.")] = None,
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
    """Recommend a training for these rows and this machine, and predict its time and memory before it starts."""
    columns = {"text": text, "text_a": text_a, "text_b": text_b, "label": label, "score": score}
    flags: dict[str, Any] = {
        "task": task,
        "model.max_length": max_length,
        "strategy": strategy,
        "training.epochs": epochs,
        "data.on_bad_row": on_bad_row,
        "seed": seed,
        **{f"data.fields.{name}": column for name, column in columns.items()},
    }
    report = api.plan(
        data,
        models=model or (),
        goal=goal,  # type: ignore[arg-type]  # what is no goal is refused there, with those there are
        limits=(minutes, memory),
        out=out,
        settings=settings_of(flags, assignments),
        display=display(),
    )
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report, out)
    if not report.go:
        raise typer.Exit(NO_GO)


def _print(report: PlanReport, out: Path | None) -> None:
    data, machine = report.data, report.machine
    rows = ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in list(data["scripts"].items())[:3])
    language = f"; probably {data['language']}" if data["language"] else ""
    print_line(f"data: {rows} rows{_balance(data)}; script: {scripts or 'none'}{language}")
    speeds = ", ".join(f"{name} {speed:,.0f} GFLOP/s" for name, speed in machine["gigaflops"].items())
    print_line(
        f"machine: {machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} used; {speeds}; "
        f"copies {machine['gigabytes']:.0f} GB/s; {machine['free_mb']:,} of {machine['memory_mb']:,} MB free"
    )
    print_table(
        "models",
        ["model", "from", "licence", "parameters", "layers", "tokens a row", "unknown", "bytes", "cut"],
        [_model(model) for model in report.models],
    )
    heads = ["model", "strategy", "epochs", "seconds", "MB", "by", ""]
    print_table("what they would take", heads, [_option(option) for option in report.options])
    print_table("why", ["key", "value", "reason"], [[item.key, str(item.value), item.line] for item in report.reasons])
    print_line(report.verdict)
    if report.go and out is not None:
        print_line(f"recipe: {out}")
        print_line(f"next: chainrule train --recipe {out}")


def _balance(data: dict[str, Any]) -> str:
    if not data["labels"]:
        return ""
    shares = f" ({data['smallest']:.1%} to {data['largest']:.1%} of the rows)" if data["smallest"] is not None else ""
    return f"; {data['labels']} labels{shares}"


def _model(model: dict[str, Any]) -> list[str]:
    fit = model["fit"]
    size = "" if model["parameters"] is None else f"{model['parameters']:,}"
    tokens = f"{fit['mean']:.0f}, at most {fit['longest']:,}"
    shares = [f"{fit[name]:.1%}" for name in ("unknown", "bytes", "cut")]
    return [model["name"], model["place"], model["licence"] or "?", size, str(model["layers"] or ""), tokens, *shares]


def _option(option: Option) -> list[str]:
    numbers = ["" if value is None else f"{value:,.0f}" for value in (option.seconds, option.peak_memory_mb)]
    by = "" if option.seconds is None else "steps" if option.measured else "count"
    return [option.model, option.strategy, f"{option.epochs or 0:g}", *numbers, by, option.note]
