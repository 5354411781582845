"""chainrule merge"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.compress import print_speed
from chainrule.cli.export import document, print_parity, size_of
from chainrule.cli.output import Json, display, print_json, print_line, settings_of
from chainrule.core.request import Limits

Option = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the method, e.g. t=0.3.")
]


def merge(
    models: Annotated[list[Path], typer.Argument(help="Run folders or artifact folders, two or more.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    method: Annotated[str, typer.Option(help="The method; `chainrule show merges` lists them.")] = "average",
    data: Annotated[str | None, typer.Option(help="Labelled data with validation and test.")] = None,
    loss: Annotated[
        float | None,
        typer.Option(min=0, help="Points that the score may be below the best member's (default 0.5; 2 for a loss)."),
    ] = None,
    worst: Annotated[
        float | None,
        typer.Option(
            min=0, help="Points at the worse end of the 95 % interval of the difference (default twice that)."
        ),
    ] = None,
    assignments: Option = None,
    as_json: Json = False,
) -> None:
    """Make one model of several fine-tunes, and put it in place if it is as good as the best of them."""
    limits: Limits = {"loss": loss, "worst": worst}
    options = settings_of({}, assignments)
    artifact, step = api.merge(models, out, method=method, data=data, options=options, display=display(), **limits)
    if as_json:
        print_json(document(artifact, step))
        return
    print_line(f"{step.step}: {artifact.path}, {size_of(artifact.path)}. Beside the best member on validation:")
    print_parity(step.parity)
    if step.speed is not None:
        print_speed(step.speed)
