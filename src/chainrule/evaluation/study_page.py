"""The page of a search: the winner and what its score is worth, which keys mattered, and every trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any

from markupsafe import Markup

from chainrule.core.task import LOWER_IS_BETTER
from chainrule.evaluation.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Frame,
    Line,
    axes,
    bar,
    clip,
    drawing,
    line_chart,
    span,
)
from chainrule.evaluation.judgement import short_path
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.page import render
from chainrule.evaluation.quantities import NOTHING, SHARES, difference_text, duration, finite, metric_text
from chainrule.system.files import write_text
from chainrule.version import __version__

WIDE_RATIO = 20.0  # of the largest value to the smallest, from which on an axis is one of powers


def write_study_page(path: Path, told: Mapping[str, Any]) -> None:
    """Write the page as one HTML file that needs no network.

    Args:
        told: what study.json says.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, render_study(told))


def render_study(told: Mapping[str, Any]) -> str:
    """The page."""
    name, trials = told["metric"], told["trials"]
    done = [trial for trial in trials if trial["state"] == "complete" and finite(trial["metric"]) is not None]
    counts = {state: sum(trial["state"] == state for trial in trials) for state in ("complete", "pruned", "fail")}
    run = Path(told["study"]).name
    return render(
        "study.html",
        title=say("study.title", run=run),
        run=run,
        task=named("task", told["task"]),
        headline=_headline(told),
        notes=_notes(told),
        values=list(_shown(told["best"]["values"])),
        numbers=_numbers(told),
        counts=say("study.counts", sampler=told["sampler"], **counts),
        history=_history(done, name),
        importance=[(key, f"{100 * share:.0f}\u202f%", bar(share)) for key, share in told["importance"].items()],
        slices=_slices(done, name),
        front=_front(told) if told["front"] else [],
        metric=named("metric", name),
        trials=[_row(trial, name) for trial in sorted(trials, key=lambda trial: _order(trial, name))],
        version=__version__,
    )


def _headline(told: Mapping[str, Any]) -> Words:
    name, test = told["metric"], told["test"]
    if test is None:
        return say("study.untested", metric=named("metric", name), value=metric_text(name, told["selected"]))
    ends = {key: metric_text(name, test[key]) for key in ("value", "low", "high")}
    return say("study.tested", metric=named("metric", name), **ends)


def _notes(told: Mapping[str, Any]) -> list[Words]:
    name, gap = told["metric"], told["winners_curse"]
    if gap is None:
        return [say("study.no-test")]
    worse = -gap if name in LOWER_IS_BETTER else gap
    values = {"selected": metric_text(name, told["selected"]), "gap": difference_text(name, gap, signed=True)}
    return [say("study.curse" if worse > 0 else "study.no-curse", **values), say("study.curse.about")]


def _numbers(told: Mapping[str, Any]) -> list[tuple[Words, Words]]:
    name, test = told["metric"], told["test"]
    return [
        (say("study.selected"), both(metric_text(name, told["selected"]))),
        (say("study.validation"), both(metric_text(name, told["validation"]))),
        (say("study.test"), both(NOTHING if test is None else metric_text(name, test["value"]))),
        (say("study.time"), duration(told["seconds"])),
    ]


def _history(done: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """The score of each finished trial, and the best so far."""
    if len(done) < 2:
        return Markup("")
    x, y = [trial["number"] for trial in done], [float(trial["metric"]) for trial in done]
    choose = min if name in LOWER_IS_BETTER else max
    best = [choose(y[: place + 1]) for place in range(len(y))]
    about = say("study.history.alt", trials=len(done), best=metric_text(name, best[-1]))
    ends = (float(x[0]), float(max(x[-1], x[0] + 1)))
    scale = 100.0 if name in SHARES else 1.0
    lines = [Line(x, y, "raw", dots=True), Line(x, best, "smooth")]
    return line_chart(lines, about=about, axis=Axis(say("study.number"), ends), scale=scale)


def _slices(done: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, Markup]]:
    """A chart for each key: what trials with each of its values have reached."""
    keys = dict.fromkeys(key for trial in done for key in trial["values"])
    found = []
    for key in keys:
        there = [trial for trial in done if key in trial["values"]]
        values, scores = [trial["values"][key] for trial in there], [float(trial["metric"]) for trial in there]
        if len({json.dumps(value) for value in values}) > 1:
            found.append((key, slice_chart(key, values, [score * (100 if name in SHARES else 1) for score in scores])))
    return found


def slice_chart(key: str, values: Sequence[Any], scores: Sequence[float]) -> Markup:
    """Scores over the values of one key: numbers on an axis, of powers where far apart, or choices side by side."""
    about = say("study.slice.alt", name=key, trials=len(values))
    box = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    y_ends = span(scores, pad=0.1)
    if numbers:
        powers = min(values) > 0 and max(values) / min(values) > WIDE_RATIO
        places = [log10(value) if powers else float(value) for value in values]
        frame = Frame(span(places, pad=0.05), y_ends, box)
        parts = [axes(frame, both(key), powers=powers)]
    else:
        names = list(dict.fromkeys(_text(value) for value in values))
        places = [float(names.index(_text(value))) for value in values]
        frame = Frame((-0.5, len(names) - 0.5), y_ends, box)
        parts = [axes(frame, both(key), names=[clip(both(text), 60 // len(names)) for text in names])]
    for place, score in zip(places, scores, strict=True):
        x, y = frame.at(place, score)
        parts.append(f'<circle class="speck" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    return drawing(WIDTH, HEIGHT, about, parts)


def _front(told: Mapping[str, Any]) -> list[dict[str, str]]:
    """The trials of which none is better in everything, the most accurate first."""
    kept = [trial for trial in told["trials"] if trial["number"] in told["front"]]
    return [
        {
            "number": str(trial["number"]),
            "metric": metric_text(told["metric"], trial["metric"]),
            "latency": f"{trial['objectives'][1]:.2f}",
            "size": f"{trial['objectives'][2]:.1f}",
            "values": "; ".join(_shown(trial["values"])),
        }
        for trial in sorted(kept, key=lambda trial: -trial["objectives"][0])
    ]


def _row(trial: Mapping[str, Any], name: str) -> dict[str, Any]:
    metric, seconds = finite(trial["metric"]), finite(trial["seconds"])
    return {
        "number": trial["number"],
        "state": named("trial-state", trial["state"]),
        "metric": NOTHING if metric is None else metric_text(name, metric),
        "steps": trial["steps"] or "",
        "seconds": both("") if seconds is None else duration(seconds),
        "values": "; ".join(_shown(trial["values"])) or trial["note"],
        "note": trial["note"],
    }


def _order(trial: Mapping[str, Any], name: str) -> tuple[bool, float]:
    metric = finite(trial["metric"])
    sign = 1 if name in LOWER_IS_BETTER else -1
    return trial["state"] != "complete", 0.0 if metric is None else sign * metric


def _shown(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else short_path(value)
        if isinstance(value, str)
        else json.dumps(value)
    )
