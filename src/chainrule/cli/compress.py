"""chainrule compress"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.export import document, print_parity, size_of
from chainrule.cli.output import Json, display, print_json, print_line, settings_of
from chainrule.core.artifact import Artifact, Speed
from chainrule.core.request import Limits

Option = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the way, e.g. rows=100.")
]


def compress(
    model: Annotated[Path, typer.Argument(help="A run folder or an artifact folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    to: Annotated[str, typer.Option(help="The way; `chainrule show compressors` lists them.")] = "int8",
    data: Annotated[str | None, typer.Option(help="Labelled data with validation and test.")] = None,
    loss: Annotated[float, typer.Option(min=0, help="Points that the score may fall.")] = api.LOSS,
    worst: Annotated[
        float, typer.Option(min=0, help="Points at the worse end of the 95 % interval of the difference.")
    ] = api.WORST,
    allow_slower: Annotated[bool, typer.Option("--allow-slower", help="Take it for its size alone.")] = False,
    assignments: Option = None,
    as_json: Json = False,
) -> None:
    """Make a model smaller or faster, and put it in place only if it stays good."""
    options = settings_of({}, assignments)
    limits: Limits = {"loss": loss, "worst": worst, "allow_slower": allow_slower}
    artifact, step = api.compress(model, out, to=to, data=data, options=options, display=display(), **limits)
    if as_json:
        print_json(document(artifact, step))
        return
    before = Artifact.read(model).path
    print_line(f"{to} in {out}: {size_of(out)} (before: {size_of(before)}).")
    print_parity(step.parity)
    if step.speed is not None:
        print_speed(step.speed)


def print_speed(speed: Speed) -> None:
    """How fast both models are, in words."""
    (rate, rates), (wait, waits) = speed.rows_per_second, speed.milliseconds
    print_line(f"Many rows: {rate:,.0f} a second before, {rates:,.0f} after ({speed.many:.2f} times).")
    print_line(f"One row: {wait:.2f} ms before, {waits:.2f} ms after ({speed.single:.2f} times as fast).")
    print_line(f"Measured in turn on this machine with {speed.threads} threads.")
