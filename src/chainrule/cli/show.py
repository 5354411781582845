"""chainrule show"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import Json, print_json, print_line, print_table

_TOLD_APART = ("name", "purpose", "summary", "kind", "fields", "tasks")
# What is printed of a layer, and its column.
GRADIENTS = {
    "gradient_norm": "gradient norm",
    "update_ratio": "update / weight",
    "noise_scale": "noise scale, rows",
    "zeros": "zeros",
    "moved": "moved",
    "activation_rms": "output, rms",
}


def show(
    what: Annotated[
        str, typer.Argument(help=f"A run or artifact folder, gradients, or one of: {', '.join(api.SHOWN)}.")
    ],
    run: Annotated[Path | None, typer.Argument(help="The run whose gradients are shown.")] = None,
    as_json: Json = False,
) -> None:
    """Look at a run, an artifact, the gradients of a run, or at what there is to choose from."""
    result = api.show(what, run)
    if as_json:
        print_json(result)
    elif what in api.SHOWN:
        for title, rows in result.items():
            _print_rows(title, rows)
        if what == "strategies":
            _print_fit(result["strategies"])
    elif what == "gradients":
        _print_gradients(result)
    else:
        _print_folder(result)


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    print_line(f"{title}:")
    for row in rows:
        print_line(f"  {row['name']}: {row.get('purpose') or row['summary']}")
        told = {key: value for key, value in row.items() if key not in _TOLD_APART and value not in ({}, [])}
        if told:
            print_line("      " + " · ".join(f"{key.replace('_', ' ')} {_cell(value)}" for key, value in told.items()))
        for field, about in row.get("fields", {}).items():
            print_line(f"      {field} ({about['kind']}): column {', '.join(about['columns'])}")


def _print_fit(strategies: list[dict[str, Any]]) -> None:
    """Which strategy goes together with which task, and why one does not."""
    tasks = list(strategies[0]["tasks"])
    cells = [[row["name"], *(_cell(row["tasks"][task] is None) for task in tasks)] for row in strategies]
    print_table("what goes together:", ["strategy", *(task.replace("-", " ") for task in tasks)], cells)
    for row in strategies:
        for task, reason in row["tasks"].items():
            if reason is not None:
                print_line(f"{row['name']} with {task}: {reason}.")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(
            f"{name}={item if isinstance(item, str) else json.dumps(item)}" for name, item in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _print_folder(result: dict[str, Any]) -> None:
    if "artifact" in result:
        manifest = result["artifact"]
        for key in ("task", "base_model", "labels", "max_length", "metrics", "loads_in"):
            print_line(f"{key}: {manifest[key]}")
        return
    summary = result["summary"]
    if not result["finished"]:
        print_line("This run has not finished: it has no artifact.")
    for key, value in summary.items():
        print_line(f"{key}: {value}")
    for split, report in result["evaluations"].items():
        verdict = report.get("verdict")
        print_line(f"{split}: {verdict.get('text') if isinstance(verdict, dict) else verdict}")
    if result["report"]:
        print_line(f"report: {result['report']}")


def _print_gradients(result: dict[str, Any]) -> None:
    if result["steps"]:
        title = f"{result['run']}: {len(result['steps'])} of {max(result['steps']):,} steps looked at, medians"
        rows = [[name, *(_number(row.get(key)) for key in GRADIENTS)] for name, row in result["middle"].items()]
        print_table(title, ["", *GRADIENTS.values()], rows)
    for number, group in enumerate(result["groups"], start=1):
        rates = [rate for rate in group["learning_rate"] if rate is not None]
        print_line(f"group {number}: learning rate up to {max(rates):.1e}, weight decay {group['weight_decay'][-1]}")
    for finding in result["findings"]:
        print_line(f"{finding['severity']}: {finding['message']} {finding['todo']}".rstrip())
    if not result["findings"]:
        print_line("Nothing is wrong with the gradients as far as was looked at.")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
