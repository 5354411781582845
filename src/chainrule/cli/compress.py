"""chainrule compress"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.export import document, print_parity, size_of
from chainrule.cli.output import Json, display, print_json, print_line, settings_of
from chainrule.cli.target import search_target
from chainrule.core.artifact import Artifact, Speed, Step
from chainrule.core.request import Limits, StudentLimits

Option = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="An option of the way (rows=100), or a key of a student's recipe."
    ),
]

SHARE = api.SHARE_KEPT


def compress(
    model: Annotated[Path, typer.Argument(help="A run folder or an artifact folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    to: Annotated[str | None, typer.Option(help="The way; `chainrule show compressors` lists them.")] = None,
    distill: Annotated[
        str | None, typer.Option(metavar="STUDENT", help="Teach a student: self:3 (three layers), lstm, or a model.")
    ] = None,
    prune: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Take out layers, neurons and heads that save so much of the work: 30%."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help='Search for a model that reaches it: "latency 4x, size 25MB, loss 1pt".')
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Search for the target without asking first.")] = False,
    epochs: Annotated[
        float | None,
        typer.Option(help="Of a student (default: twice its teacher's), or after pruning (once)."),
    ] = None,
    kept: Annotated[float, typer.Option(help="The share of its teacher's score a student must reach.")] = SHARE,
    data: Annotated[str | None, typer.Option(help="Labelled data with validation and test.")] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Rows without labels, of which a student learns what its teacher says.")
    ] = None,
    loss: Annotated[
        float | None,
        typer.Option(min=0, help="Points that the score may fall (default 0.5; 2 for a loss per token)."),
    ] = None,
    worst: Annotated[
        float | None,
        typer.Option(
            min=0, help="Points at the worse end of the 95 % interval of the difference (default twice that)."
        ),
    ] = None,
    allow_slower: Annotated[bool, typer.Option("--allow-slower", help="Take it for its size alone.")] = False,
    assignments: Option = None,
    as_json: Json = False,
) -> None:
    """Make a model smaller or faster, and put it in place only if it stays good."""
    if sum(way is not None for way in (to, distill, prune, target)) != 1:
        ways = 'one of these: --to int8, --distill self:3, --prune 30%, --target "latency 4x, loss 1pt"'
        raise typer.BadParameter(ways, param_hint="--to")
    if distill is not None:
        least: StudentLimits = {"epochs": epochs, "kept": kept, "allow_slower": allow_slower}
        further = None if unlabelled is None else str(unlabelled)
        least["settings"] = settings_of({"distillation.unlabelled": further}, assignments)
        run, learned = api.distill(model, distill, out, data=data, display=display(), **least)
        _report(model, run.artifact, learned, as_json)
        return
    if unlabelled is not None:
        raise typer.BadParameter("only with --distill", param_hint="--unlabelled")
    options = settings_of({}, assignments)
    if target is not None:
        search_target(
            model, target, out, data, options if epochs is None else {"epochs": epochs, **options}, yes, as_json
        )
        return
    if prune is not None:
        to, options = "prune", {"share": share_of(prune), **options}
    if epochs is not None:
        options = {"epochs": epochs, **options}
    limits: Limits = {"loss": loss, "worst": worst, "allow_slower": allow_slower}
    artifact, step = api.compress(model, out, to=str(to), data=data, options=options, display=display(), **limits)
    _report(model, artifact, step, as_json)


def share_of(text: str) -> float:
    """30% or 0.3 as 0.3."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = float("nan")
    if not 0 < share < 1:
        raise typer.BadParameter("a share such as 30% or 0.3", param_hint="--prune")
    return share


def _report(model: Path, artifact: Artifact, step: Step, as_json: bool) -> None:
    if as_json:
        print_json(document(artifact, step))
        return
    before = Artifact.read(model).path
    print_line(f"{step.step}: {artifact.path}, {size_of(artifact.path)} (before: {size_of(before)}).")
    print_parity(step.parity)
    if step.speed is not None:
        print_speed(step.speed)


def print_speed(speed: Speed) -> None:
    """How fast both models are, in words."""
    (rate, rates), (wait, waits) = speed.rows_per_second, speed.milliseconds
    if speed.written is None:
        print_line(f"Many rows: {rate:,.0f} a second before, {rates:,.0f} after ({speed.many:.2f} times).")
        print_line(f"One row: {wait:.2f} ms before, {waits:.2f} ms after ({speed.single:.2f} times as fast).")
    else:
        count = speed.written
        print_line(
            f"{count} tokens, several rows: {rate:.2f} rows/s before, {rates:.2f} after ({speed.many:.2f} times)."
        )
        print_line(
            f"{count} tokens, one row: {wait:.0f} ms before, {waits:.0f} ms after ({speed.single:.2f} times as fast)."
        )
    print_line(f"Measured in turn on this machine with {speed.threads} threads.")
