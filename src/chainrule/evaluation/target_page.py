"""The page of a search for a target: what was reached, quality against latency, and every candidate."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from chainrule.core.target import Candidate, TargetReport
from chainrule.evaluation.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, axes, drawing, span
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.page import render
from chainrule.evaluation.quantities import NOTHING, SHARES, difference_text, duration, metric_text
from chainrule.system.files import write_text
from chainrule.version import __version__

CELLS = 10


def write_target_page(path: Path, report: TargetReport) -> None:
    """Write the page as one HTML file that needs no network.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, render_target(report, path.parent.name))


def render_target(report: TargetReport, run: str) -> str:
    """The page.

    Args:
        run: the name of the target's folder.
    """
    return render(
        "target.html",
        title=say("target.title", run=run),
        run=run,
        task=both(report.target.text),
        headline=_headline(report),
        notes=_notes(report),
        chart=frontier_chart(report),
        metric=named("metric", report.metric),
        rows=[_row(found, report) for found in report.candidates],
        version=__version__,
    )


def _headline(report: TargetReport) -> Words:
    if report.chosen is None:
        return say("target.missed", target=report.target.text)
    sentence = "target.reached" if report.reached else "target.flattered"
    return say(sentence, name=report.chosen, target=report.target.text)


def _notes(report: TargetReport) -> list[Words]:
    notes, metric = [], named("metric", report.metric)
    test, speed = report.test, report.speed
    if test is not None and speed is not None and test.low is not None and test.high is not None:
        scores = {"after": metric_text(report.metric, test.after), "before": metric_text(report.metric, test.before)}
        ends = {
            "low": difference_text(report.metric, test.low, signed=True),
            "high": difference_text(report.metric, test.high, signed=True),
        }
        times = {"single": f"{speed.single:.2f}", "many": f"{speed.many:.2f}"}
        notes.append(say("target.tested", rows=f"{test.rows:,}", metric=metric, **scores, **ends, **times))
    nearest, cheapest = report.named(report.nearest), report.named(report.cheapest)
    if report.chosen is None and nearest is not None:
        notes.append(say("target.nearest", name=nearest.name, missing=f"{report.target.missing(nearest):.2f}"))
    if cheapest is not None:
        loss = difference_text(report.metric, cheapest.quality, signed=True)
        notes.append(say("target.cheapest", name=cheapest.name, loss=loss, metric=metric))
    return [*notes, say("target.about", rows=f"{report.rows:,}")]


def frontier_chart(report: TargetReport) -> Markup:
    """The difference of the score over how many times as fast one row is, those that none beats in the other colour."""
    made = [found for found in report.candidates if not found.note]
    if len(made) < 2:
        return Markup("")
    scale = 100.0 if report.metric in SHARES else 1.0
    places = [(found.single, scale * found.quality) for found in made]
    x_ends = span([x for x, _ in places], pad=0.15)
    y_ends = span([*(y for _, y in places), -scale * report.target.loss], pad=0.15)
    frame = Frame(x_ends, y_ends, (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    parts = [axes(frame, say("target.latency"))]
    (left, level), (right, _) = (frame.at(x, -scale * report.target.loss) for x in x_ends)
    parts.append(f'<line class="zero" x1="{left:.1f}" y1="{level:.1f}" x2="{right:.1f}" y2="{level:.1f}"/>')
    for found, (x, y) in zip(made, places, strict=True):
        across, up = frame.at(x, y)
        kind = "smooth" if found.name in report.frontier else "raw"
        parts.append(f'<circle class="dot {kind}" cx="{across:.1f}" cy="{up:.1f}" r="4"/>')
        if found.name == report.chosen:
            parts.append(f'<circle class="ring" cx="{across:.1f}" cy="{up:.1f}" r="7.5"/>')
    numbers = {"count": len(made), "kept": len(report.frontier), "metric": named("metric", report.metric)}
    return drawing(WIDTH, HEIGHT, say("target.frontier.alt", **numbers), parts)


def _row(found: Candidate, report: TargetReport) -> dict[str, object]:
    if found.note:
        return {"name": found.name, "cells": [""] * CELLS, "state": say("target.refused", note=found.note)}
    name = report.metric
    interval = NOTHING
    if found.parent is not None and found.low is not None and found.high is not None:
        ends = (difference_text(name, value, signed=True) for value in (found.low, found.high))
        interval = f"{difference_text(name, found.quality, signed=True)} ({' … '.join(ends)})"
    state = say("target.holds" if found.holds else "target.loses")
    cells = [
        metric_text(name, found.score),
        interval,
        f"{found.milliseconds:.2f}",
        f"{found.p95:.2f}",
        f"{found.rows_per_second:,.0f}",
        f"{found.single:.2f}",
        f"{found.many:.2f}",
        f"{found.megabytes:.1f}",
        NOTHING if found.memory_mb is None else f"{found.memory_mb:,.0f}",
        duration(found.seconds) if found.parent is not None else NOTHING,
    ]
    return {"name": found.name, "cells": cells, "state": say("target.chosen") if found.name == report.chosen else state}
