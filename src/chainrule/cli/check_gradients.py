"""chainrule check-gradients"""

from __future__ import annotations

from typing import Annotated

import typer

from chainrule import api
from chainrule.cli.output import Json, display, print_json, print_line, print_table
from chainrule.core.report import GradientReport


def check_gradients(
    model: Annotated[str, typer.Argument(help="A run, artifact or model folder, or a catalog or hub name.")],
    kernels: Annotated[bool, typer.Option("--kernels", help="Also check the CPU kernels on this model.")] = False,
    seed: Annotated[int, typer.Option(help="Decides the batch and the directions that are tried.")] = 0,
    as_json: Json = False,
) -> None:
    """Is the backward of a model the derivative of its forward? Every module by itself, by differences in float64."""
    report = api.check_gradients(model, kernels=kernels, seed=seed, display=display())
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(3)


def _print(report: GradientReport) -> None:
    formats = list(report.tolerances)
    rows = [
        [kind.kind, f"{kind.derivatives:,}", *(_shown(kind.errors[name]) for name in formats)] for kind in report.kinds
    ]
    rows.append(["allowed", "", *(f"{report.tolerances[name]:g}" for name in formats)])
    print_table(f"{report.model}: greatest relative error", ["type of module", "checks", *formats], rows)
    print_line("worst of those that are right:")
    for derivative in report.worst:
        print_line(f"  {derivative.text}")
    for derivative in (*report.undecided, *report.wrong):
        print_line(f"{derivative.outcome}: {derivative.text}")
    print_line(report.text)


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"
