"""What a watched run did in each layer: for the report, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainrule.core.artifact import Run
from chainrule.core.report import Finding
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.evaluation.charts import Axis, Line, line_chart, thin
from chainrule.evaluation.diagnosis import Case, diagnose
from chainrule.evaluation.languages import say
from chainrule.evaluation.layer_charts import layer_map, part_words
from chainrule.evaluation.quantities import NOTHING, count_text, mapping
from chainrule.evaluation.record import Record, read_record
from chainrule.evaluation.sections import findings
from chainrule.evaluation.trace import Series, noise_scale, typical

MAPS = ("gradient_norm", "update_ratio")
POINTS = 300  # of a curve
COLUMNS = ("gradient_norm", "update_ratio", "noise_scale", "zeros", "moved", "activation_rms")


def describe_gradients(what: str | Path, run: str | Path | Run | None) -> dict[str, Any]:
    """What a watched run recorded of its layers, what is usual there, and what is wrong, as plain values.

    Args:
        what: "gradients", or what was asked for by mistake.

    Returns:
        "run"; "steps", "rows", "all", "layers", "groups": series over the looks; "middle": see `middles`; "findings".

    Raises:
        UserError: no run is named, there is none, or it was not watched.
    """
    if what != "gradients" or run is None:
        todo = "Say: chainrule show gradients RUN"
        got = "no run" if run is None else f"{str(what)!r} and a run"
        raise RecipeError("Only the gradients of a run are shown so.", [Problem("gradients and a run", got, todo)])
    folder = run.path if isinstance(run, Run) else Path(run)
    if not (folder / "recipe.yaml").is_file():
        got = "another folder" if folder.is_dir() else "no such folder"
        problem = Problem("a run folder", got, "Give the folder that `chainrule train --out` made.", Where(str(folder)))
        raise ModelError(f"There is no run at {folder}.", [problem])
    record = read_record(folder)
    trace, found = record.trace, faults(record)
    if not trace.steps and not found:
        todo = "Train with --watch-gradients."
        problem = Problem("a run that was watched", "no record of gradients", todo, Where(str(folder)))
        raise ModelError(f"The gradients of {folder} were not looked at.", [problem])
    return {
        "run": str(folder),
        "steps": trace.steps,
        "rows": trace.rows,
        "all": trace.whole,
        "layers": trace.layers,
        "groups": trace.groups,
        "middle": middles(record),
        "findings": [finding.as_dict() for finding in found],
    }


def faults(record: Record) -> tuple[Finding, ...]:
    """What is wrong in the layers of a run, as far as it was watched."""
    strategy = mapping(record.resolved.get("strategy")).get("name")
    return diagnose(Case(record.trace, record.progress.loss.value, str(strategy or "")))


def middles(record: Record) -> dict[str, dict[str, float | None]]:
    """The median over all looks of each quantity, the last `moved`, and the noise scale of all looks together.

    Returns:
        By "all", the layers from the head down, and the parameter groups as "group 1" ….
    """
    trace = record.trace
    groups = {f"group {number}": table for number, table in enumerate(trace.groups, start=1)}
    tables = {"all": trace.whole, **dict(reversed(trace.layers.items())), **groups}
    return {name: _middle(table, trace.rows) for name, table in tables.items()}


def _middle(table: Mapping[str, Series], rows: list[float]) -> dict[str, float | None]:
    found = {quantity: typical(series) for quantity, series in table.items()}
    last = next((value for value in reversed(table["moved"]) if value is not None), None)
    return found | {"moved": last, "noise_scale": noise_scale(table, rows)}


def layers(record: Record) -> dict[str, Any]:
    """The part of the report: what is wrong, heat maps, a curve, a table; empty where the run was not watched."""
    trace = record.trace
    if not trace.steps:
        return {}
    return {
        "about": say("layers.about", looks=count_text(len(trace.steps)), steps=count_text(max(trace.steps))),
        "findings": findings([finding.as_dict() for finding in faults(record)]),
        "charts": [*_maps(record), *_curve(record)],
        "columns": [say(f"layers.{quantity}") for quantity in COLUMNS],
        "rows": [
            (part_words(name), [number_text(quantity, row.get(quantity)) for quantity in COLUMNS])
            for name, row in middles(record).items()
        ],
    }


def number_text(quantity: str, value: float | None) -> str:
    """A number of a layer for a person: shares in percent, the others to three digits."""
    if value is None:
        return NOTHING
    if quantity in ("zeros", "moved"):
        return f"{100 * value:.3g} %"
    return count_text(value) if quantity == "noise_scale" else f"{value:.3g}"


def _maps(record: Record) -> list[dict[str, Any]]:
    trace = record.trace
    broken = [(each.looks, trace.layer_of(each.first_in) if each.first_in else None) for each in trace.diverged]
    found = []
    for quantity in MAPS:
        series = {name: table[quantity] for name, table in trace.layers.items()}
        title = say(f"layers.{quantity}")
        found.append({"title": title, "chart": layer_map(series, trace.steps, broken, title=title)})
    return found


def _curve(record: Record) -> list[dict[str, Any]]:
    curve = record.progress.gradient_norm
    if not curve.value:
        return []
    about = say("alt.gradient_norm", first=f"{curve.value[0]:.3g}", high=f"{max(curve.value):.3g}")
    x, y = thin(curve.step, curve.value, POINTS)
    axis = Axis(say("chart.step"), (0.0, max(curve.step)))
    chart = line_chart([Line(x, y, "smooth")], about=about, axis=axis, from_zero=True)
    return [{"title": say("chart.gradient_norm"), "chart": chart}]
