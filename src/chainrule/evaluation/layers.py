"""What a watched run did in each layer: for the report, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.core.report import Finding
from chainrule.evaluation.charts import Line, line_chart, thin
from chainrule.evaluation.diagnosis import Case, diagnose
from chainrule.evaluation.languages import say
from chainrule.evaluation.layer_charts import layer_map, part_words
from chainrule.evaluation.quantities import NOTHING, count_text, mapping
from chainrule.evaluation.record import Record
from chainrule.evaluation.sections import findings
from chainrule.evaluation.trace import Series, noise_scale, typical

MAPS = ("gradient_norm", "update_ratio")
POINTS = 300  # of a curve
COLUMNS = ("gradient_norm", "update_ratio", "noise_scale", "zeros", "moved", "activation_rms")


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
    line, x_range = Line(x, y, "smooth"), (0.0, max(curve.step))
    chart = line_chart([line], about=about, x_name=say("chart.step"), x_range=x_range, from_zero=True)
    return [{"title": say("chart.gradient_norm"), "chart": chart}]
