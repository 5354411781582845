"""chainrule compress --target: what it may take, the search, and what it found."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from chainrule import api
from chainrule.cli.export import print_parity
from chainrule.cli.output import display, print_json, print_line, print_table
from chainrule.core.target import Candidate, Expected, TargetReport

OUT_OF_REACH = 3


def search_target(
    model: Path, target: str, out: Path, data: str | None, options: Mapping[str, Any], yes: bool, as_json: bool
) -> None:
    """Tell what the search may take, ask, search, and tell what came of it; exit code 3 where the target is missed."""
    if not yes:
        steps = api.plan_target(model, target, data=data, options=options)
        if as_json:
            print_json({"target": target, "steps": [step.model_dump() for step in steps]})
            return
        _print_plan(target, steps)
        if not (sys.stdin.isatty() and typer.confirm("Search?", err=True)):
            print_line("Nothing was made. To search: the same with --yes.")
            return
    report = api.reach_target(model, target, out, data=data, options=options, display=display())
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report, out)
    if not report.reached:
        raise typer.Exit(OUT_OF_REACH)


def _print_plan(target: str, steps: list[Expected]) -> None:
    rows = [[step.name, "?" if step.seconds is None else f"{step.seconds:,.0f}", step.note] for step in steps]
    print_table(f'"{target}": steps that may be tried, until it is reached', ["step", "seconds, about", ""], rows)
    known = [step.seconds for step in steps if step.seconds is not None]
    if known:
        print_line(f"All of them: about {sum(known) / 60:,.0f} minutes, and some for measuring each.")
    else:
        print_line("How long they take is not known: the model does not lie in its run.")


def _print(report: TargetReport, out: Path) -> None:
    print_line(f"On {report.rows:,} validation rows, beside the model itself; * is beaten by none:")
    for found in report.candidates:
        print_line(_line(found, report))
    if report.test is not None:
        print_line(f"{report.chosen}, on the test rows:")
        print_parity(report.test)
    nearest, cheapest = report.named(report.nearest), report.named(report.cheapest)
    if report.reached:
        print_line(f"Reached: {report.chosen}, in {report.artifact}.")
    elif report.chosen is not None:
        print_line("Not reached: it loses too much on the test rows. The candidates stay.")
    elif nearest is not None:
        missing = report.target.missing(nearest)
        print_line(f"Out of reach. Nearest within the loss: {nearest.name}, to be {missing:.2f} times better.")
    if cheapest is not None:
        print_line(f"As fast and as small as asked: {cheapest.name}, at {cheapest.quality:+.4f} of {report.metric}.")
    print_line(f"Page: {out / 'report.html'}")


def _line(found: Candidate, report: TargetReport) -> str:
    """A candidate with all that was measured of it."""
    star = "* " if found.name in report.frontier else "  "
    if found.note:
        return f"{star}{found.name}: not made, {found.note}."
    interval = ""
    if found.parent is not None and found.low is not None:
        interval = f" ({found.quality:+.4f}, {found.low:+.4f} to {found.high:+.4f})"
    parts = [
        f"{report.metric} {found.score:.4f}{interval}",
        f"one row {found.milliseconds:.2f} ms (p95 {found.p95:.2f}), {found.single:.2f} times",
        f"{found.rows_per_second:,.0f} rows/s, {found.many:.2f} times",
        f"{found.megabytes:.1f} MB" + ("" if found.memory_mb is None else f", {found.memory_mb:,.0f} MiB of memory"),
    ]
    state = ["chosen"] if found.name == report.chosen else [] if found.holds else ["loses too much"]
    return f"{star}{found.name}: {'; '.join([*parts, *state])}."
