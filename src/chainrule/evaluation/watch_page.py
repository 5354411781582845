"""The page of a monitor: rows and labels over time with the alarms, drift, accuracy, and rows worth labelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

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
    drawing,
    line_chart,
    span,
    thin,
)
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.page import render
from chainrule.evaluation.quantities import NOTHING
from chainrule.system.files import refuse_existing, write_text
from chainrule.version import __version__

MOST_LABELS = 12  # with a chart of their own
MOST_ALARMS = 50  # in the table
DAY = 86_400.0


def write_watch_page(path: Path, name: str, summary: Mapping[str, Any]) -> None:
    """Write the page as one HTML file that needs no network and that only its owner may read.

    Args:
        name: of the monitor's file.
        summary: what `chainrule watch show --json` says.

    Raises:
        OutputError: it is there already, or cannot be written.
    """
    refuse_existing(path)
    write_text(path, render_watch(name, summary))
    path.chmod(0o600)


def render_watch(name: str, summary: Mapping[str, Any]) -> str:
    """The page."""
    settings, alarms = summary["settings"], summary["alarms"]
    return render(
        "watch.html",
        title=say("watch.title", run=name),
        run=name,
        task="",
        headline=say("watch.alarms", count=len(alarms)) if alarms else say("watch.quiet"),
        about=_about(settings),
        models=[_model(name, model, summary) for name, model in summary["models"].items()],
        alarms=[_alarm(alarm, settings) for alarm in alarms[:MOST_ALARMS]],
        version=__version__,
    )


def _about(settings: Mapping[str, Any]) -> Any:
    window, every = settings["window"], settings["false_alarms"]
    if settings["of_rows"]:
        return say("watch.about.rows", window=f"{int(window):,}", every=f"{int(every):,}")
    return say("watch.about", window=window, every=every)


def _model(name: str, model: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    of_rows = summary["settings"]["of_rows"]
    windows = [window for window in model["windows"] if window["closed"]]
    alarms = [alarm for alarm in summary["alarms"] if alarm["model"] == name]
    reference, queues = model["reference"], model["queues"]
    facts = [
        (say("watch.rows"), both(f"{model['rows']:,}")),
        (
            say("watch.beside"),
            say("watch.no-reference")
            if reference is None
            else say(f"watch.reference.{reference['source']}", rows=f"{reference['rows']:,}"),
        ),
        (say("watch.low"), both(f"{queues['low-confidence']:,}")),
        (say("watch.far"), both(f"{queues['unusual']:,}")),
        (say("watch.texts"), both(f"{queues['texts']:,}")),
    ]
    shadow = model["shadow"]
    if shadow:
        facts.append((say("watch.shadow"), both(f"{shadow.get('same', 0):,} / {sum(shadow.values()):,}")))
    return {
        "name": name,
        "facts": facts,
        "accuracy": _accuracies(model),
        "charts": _charts(windows, alarms, of_rows) if len(windows) > 1 else [],
    }


def _accuracies(model: Mapping[str, Any]) -> list[tuple[Words, str, str, str]]:
    """Rows of a table: what was counted or estimated, the share, its interval, of how many rows."""
    feedback, estimate = model["feedback"], model["estimate"]
    rows = []
    if feedback["accuracy"] is not None:
        rows.append((say("watch.feedback"), *_share(feedback["accuracy"])))
        for label, share in feedback["by_predicted_label"].items():
            rows.append((say("watch.feedback.label", label=label), *_share(share)))
    if estimate is not None:
        rows.append((say("watch.confidence"), *_share(estimate)))
        rows.append(
            (say("watch.threshold"), f"{100 * estimate['thresholded']:.1f} %", NOTHING, f"{estimate['rows']:,}")
        )
    return rows


def _share(share: Mapping[str, float]) -> tuple[str, str, str]:
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} %", f"{low:.1f} – {high:.1f} %", f"{share['rows']:,.0f}"


def _charts(
    windows: Sequence[Mapping[str, Any]], alarms: Sequence[Mapping[str, Any]], of_rows: bool
) -> list[tuple[Words, Markup]]:
    """Captions and charts, all over the same windows."""
    if of_rows:
        x, name = [float(window["number"]) for window in windows], say("watch.window")
    else:
        last = windows[-1]["start"]
        x, name = [(window["start"] - last) / DAY for window in windows], say("watch.days")
    axis = Axis(name, (x[0], x[-1]))
    places = {window["number"]: place for place, window in enumerate(windows)}
    rows = [float(window["rows"]) for window in windows]
    charts = [(say("watch.chart.rows"), _counts_chart(x, rows, [], axis, say("watch.chart.rows.alt")))]
    totals: dict[str, int] = {}
    for window in windows:
        for label, count in window["labels"].items():
            totals[label] = totals.get(label, 0) + count
    for label in sorted(totals, key=lambda label: -totals[label])[:MOST_LABELS]:
        counts = [float(window["labels"].get(label, 0)) for window in windows]
        rung = [places[a["window"]] for a in alarms if a["name"] == label and a["window"] in places]
        about = say("watch.chart.label.alt", label=label, alarms=len(rung))
        charts.append((say("watch.chart.label", label=label), _counts_chart(x, counts, rung, axis, about)))
    for what in ("label", "length", "unknown", "score", "vector"):
        some = [(place, window["drift"][what]) for place, window in enumerate(windows) if what in window["drift"]]
        rung = [
            places[a["window"]] for a in alarms if (a["kind"], a["name"]) == ("drift", what) and a["window"] in places
        ]
        if len(some) > 1:
            kind = named("watch-what", what)
            about = say("watch.chart.drift.alt", what=kind, alarms=len(rung))
            drawn = _sizes_chart(x, some, rung, axis, about)
            charts.append((say("watch.chart.drift", what=kind), drawn))
    lines = [
        Line([x[place] for place, _ in found], [value for _, value in found], kind, dots=len(found) < 40)
        for key, kind in (("confidence", "smooth"), ("threshold", "valid"))
        if (found := [(p, w["estimate"][key]) for p, w in enumerate(windows) if key in w["estimate"]])
    ]
    if lines:
        about = say("watch.chart.accuracy.alt")
        charts.append((say("watch.chart.accuracy"), line_chart(lines, about=about, axis=axis, scale=100.0)))
    return charts


def _counts_chart(x: Sequence[float], counts: Sequence[float], rung: Sequence[int], axis: Axis, about: Words) -> Markup:
    return _sizes_chart(x, list(enumerate(counts)), rung, axis, about)


def _sizes_chart(
    x: Sequence[float], some: Sequence[tuple[int, float]], rung: Sequence[int], axis: Axis, about: Words
) -> Markup:
    """Numbers of windows from zero on, with a ring where there was an alarm."""
    ends = axis.ends if axis.ends[1] > axis.ends[0] else (axis.ends[0], axis.ends[0] + 1)
    frame = Frame(
        ends,
        span([0.0, *(value for _, value in some)], pad=0.12, zero=True),
        (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
    )
    parts = [axes(frame, axis.name)]
    across, along = thin([x[place] for place, _ in some], [value for _, value in some])
    points = [frame.at(*point) for point in zip(across, along, strict=True)]
    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts.append(f'<polyline class="line" points="{drawn}"/>')
    values = dict(some)
    for place in rung:
        if place in values:
            a, b = frame.at(x[place], values[place])
            parts.append(f'<circle class="ring alarm" cx="{a:.1f}" cy="{b:.1f}" r="6.5"/>')
    return drawing(WIDTH, HEIGHT, about, parts)


def _alarm(alarm: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    moment = datetime.fromtimestamp(alarm["time"], UTC)
    return {
        "time": moment.strftime("%Y-%m-%d %H:%M UTC"),
        "model": alarm["model"],
        "kind": named("watch-kind", alarm["kind"]),
        "message": alarm["message"],
        "probability": f"{alarm['told'].get('probability', 1.0):.2g}",
    }
