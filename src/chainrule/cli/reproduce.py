"""chainrule reproduce"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.output import Json, display, print_json, print_line, print_table


def reproduce(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="The folder of the second run; by default beside the first.")] = None,
    as_json: Json = False,
) -> None:
    """Make a finished run again and say whether it comes out the same, to the last bit; exit code 3 if not."""
    found = api.reproduce(run, out=out, display=display())
    if as_json:
        print_json(found.as_dict())
    else:
        rows = [
            [name, *(f"{value:.6g}" for value in (pair["first"], pair["second"]))]
            for name, pair in found.metrics.items()
        ]
        print_table("validation", ["metric", "first", "again"], rows)
        print_line(f"weights: {'the same' if found.same_weights else 'not the same'}")
        print_line(f"events: {_events(found.events, found.difference)}")
        if found.changed:
            print_line(f"changed since the first run: {', '.join(found.changed)}")
        print_line(f"second run: {found.again}")
    if not found.same:
        raise typer.Exit(3)


def _events(count: int, difference: dict[str, object] | None) -> str:
    if difference is None:
        return f"all {count:,} the same"
    at = f"{difference['event']} of step {difference['step']}"
    return f"first different in {at}: {difference['key']} {difference['first']} and {difference['second']}"
