"""chainrule export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.output import Json, display, print_json, print_line, settings_of
from chainrule.core.artifact import Artifact, Parity, Step

Option = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the format, e.g. numbers=q8_0.")
]


def export(
    model: Annotated[Path, typer.Argument(help="A run folder or an artifact folder.")],
    to: Annotated[str, typer.Option(help="The format; `chainrule show exporters` lists them.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    data: Annotated[str | None, typer.Option(help="Labelled rows to compare both models on.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many rows at most.")] = api.PARITY_ROWS,
    assignments: Option = None,
    as_json: Json = False,
) -> None:
    """Write a fine-tuned model for other programs, and make sure that it is still the same model."""
    artifact, step = api.export(
        model, to, out, data=data, limit=limit, options=settings_of({}, assignments), display=display()
    )
    if as_json:
        print_json(document(artifact, step))
        return
    print_line(f"{to} in {out}: {size_of(out)}; loads in {', '.join(artifact.manifest.loads_in)}.")
    print_parity(step.parity)


def document(artifact: Artifact, step: Step) -> dict[str, object]:
    """What --json prints of an artifact that was made from another."""
    sizes = {"bytes": sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())}
    manifest = artifact.manifest
    known = {"runtime": manifest.runtime, "loads_in": manifest.loads_in, "parent": manifest.parent}
    return {
        "artifact": str(artifact.path),
        **sizes,
        **known,
        **step.model_dump(mode="json", include={"parity", "speed"}),
    }


def print_parity(parity: Parity) -> None:
    """How near it is to the model it was made from, in words."""
    of = f"{parity.rows:,} rows" + (f" of {parity.data}" if parity.data else " of tokens drawn by chance")
    print_line(
        f"Compared on {of}: outputs differ by at most {parity.distance:.2g} (the largest is {parity.largest:.3g})."
    )
    if parity.covered is not None:
        print_line(f"{100 * parity.covered:.1f} % of the rows are read as the same tokens; outputs are of these.")
    if parity.agreement is not None:
        print_line(f"Same answer: {100 * parity.agreement:.2f} % of the rows.")
    if parity.metric is not None:
        interval = "" if parity.low is None else f", 95 % interval {parity.low:+.4f} to {parity.high:+.4f}"
        print_line(f"{parity.metric}: {parity.before:.4f} before, {parity.after:.4f} after{interval}.")


def size_of(folder: Path) -> str:
    """How large a folder is."""
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:,.1f} MB"
