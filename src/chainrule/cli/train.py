"""chainrule train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import (
    EngineName,
    Json,
    Label,
    Score,
    Set,
    Text,
    TextA,
    TextB,
    Workers,
    display,
    engine_of,
    print_json,
    print_line,
    settings_of,
)
from chainrule.core.artifact import Run


def train(
    data: Annotated[str | None, typer.Argument(help="A file, a folder, or a catalog or hub name.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file; flags override it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    model: Annotated[str | None, typer.Option(help="A catalog name, a folder or a hub name.")] = None,
    task: Annotated[str | None, typer.Option(help="What a row means; see `chainrule show tasks`.")] = None,
    strategy: Annotated[str | None, typer.Option(help="full, partial, lora, auto, …; see `show strategies`.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often every row is seen.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train no longer than about this.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate with so many folds first: for data too small for a test split.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; takes no other flags.")
    ] = None,
    text: Text = None,
    text_a: TextA = None,
    text_b: TextB = None,
    label: Label = None,
    score: Score = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row may have.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(help="stop (the default) or skip.")] = None,
    track: Annotated[list[str] | None, typer.Option(help="tensorboard or mlflow; repeatable.")] = None,
    profile: Annotated[bool | None, typer.Option("--profile", help="Tell where a step's time goes.")] = None,
    deterministic: Annotated[
        bool | None, typer.Option(help="The same bits every time; on a CPU that is so anyway.", show_default=False)
    ] = None,
    watch_gradients: Annotated[
        bool | None, typer.Option("--watch-gradients", help="Look at every layer's gradients; see `show gradients`.")
    ] = None,
    engine: EngineName = None,
    workers: Workers = None,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a pretrained model and say whether it is better than what comes for free."""
    columns = {"text": text, "text_a": text_a, "text_b": text_b, "label": label, "score": score}
    flags: dict[str, Any] = {
        "task": task,
        "model.name": model,
        "model.max_length": max_length,
        "strategy": strategy,
        "training.epochs": epochs,
        "training.minutes": minutes,
        "training.folds": folds,
        "training.track": track or None,
        "training.profile": profile,
        "training.watch_gradients": watch_gradients,
        "training.deterministic": deterministic,
        "data.on_bad_row": on_bad_row,
        "seed": seed,
        **{f"data.fields.{name}": column for name, column in columns.items()},
    }
    if resume is not None:
        given = [value for value in (data, recipe, out, *flags.values(), *(assignments or [])) if value is not None]
        if given:
            told = "it takes no other argument but --engine, --workers and --json"
            raise typer.BadParameter(told, param_hint="--resume")
        _tell(api.resume(resume, display=display(), engine=engine_of(engine, workers)), as_json)
        return
    settings, asked = settings_of(flags, assignments), engine_of(engine, workers)
    run = api.train(data, recipe=recipe, out=out, settings=settings, display=display(), engine=asked)
    _tell(run, as_json)


def _tell(run: Run, as_json: bool) -> None:
    if as_json:
        print_json(run.summary)
    else:
        _print(run)


def _print(run: Run) -> None:
    summary = run.summary
    name = summary["primary_metric"]
    print_line(f"Trained {summary['trained_parameters']:,} parameters ({summary['strategy']}) of {summary['model']}")
    print_line(
        f"{summary['steps']} steps in {summary['seconds']:.0f} s (all in all {summary['seconds_total']:.0f} s), "
        f"peak memory {summary['peak_memory_mb']:.0f} MB"
    )
    if "predicted" in summary:
        before = summary["predicted"]
        print_line(f"planned: {before['seconds']:.0f} s, peak memory {before['peak_memory_mb']:.0f} MB")
    print_line(f"validation {name} {summary['metrics'][name]:.4f} (step {summary['best_step']}, kept as the best)")
    if "cross_validation" in summary:
        _print_folds(summary["cross_validation"], name)
    else:
        print_line(f"verdict on validation: {summary['verdict']}")
    print_line(f"model: {summary['artifact']}")
    print_line(f"report: {run.path / 'report.html'}")
    print_line(f"next: chainrule evaluate {run.path} --split test")


def _print_folds(told: dict[str, Any], name: str) -> None:
    estimate, over = told["metrics"][name], told["over_folds"][name]
    print_line(
        f"cross-validated {name} {estimate['value']:.4f} (95 % {estimate['low']:.4f} to {estimate['high']:.4f}) on "
        f"{told['rows']:,} rows; mean over {told['folds']} folds {over['mean']:.4f}, standard deviation "
        f"{over['deviation']:.4f}"
    )
    print_line(f"scored: {told['scored']}")
    print_line(f"verdict by cross-validation: {told['verdict']}")
