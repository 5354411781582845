"""The page of a learning-rate range test: the plot, and what it suggests."""

from __future__ import annotations

from math import log10
from pathlib import Path

from markupsafe import Markup

from chainrule.core.report import RateReport
from chainrule.evaluation.charts import Axis, Line, line_chart
from chainrule.evaluation.judgement import short_path
from chainrule.evaluation.languages import both, named, say
from chainrule.evaluation.page import render
from chainrule.evaluation.quantities import NOTHING
from chainrule.system.files import write_text
from chainrule.version import __version__

CEILING = 1.3  # times the highest smoothed loss up to the lowest: what lies above would flatten the rest


def write_rate_page(path: Path, report: RateReport) -> None:
    """Write the page as one HTML file that needs no network.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, render_rates(report))


def render_rates(report: RateReport) -> str:
    """The page."""
    found = report.suggestion is not None
    told = {"lowest": rate_text(report.lowest), "steepest": rate_text(report.steepest)}
    return render(
        "rates.html",
        title=say("rates.title", data=short_path(report.data)),
        run=short_path(report.data),
        task=named("task", report.task),
        headline=say("rates.suggestion", rate=rate_text(report.suggestion)) if found else say("rates.none"),
        about=say("rates.about", **told) if found else say("rates.none.about"),
        command=f"--set optimizer.learning_rate={rate_text(report.suggestion)}" if found else "",
        ended=say(
            "rates.ended",
            model=short_path(report.model),
            strategy=report.strategy,
            steps=len(report.losses),
            stopped=named("ended", report.stopped),
        ),
        chart=rate_chart(report),
        version=__version__,
    )


def rate_chart(report: RateReport) -> Markup:
    """The loss of each step and the smoothed one over the learning rate, with a ring at the suggestion."""
    places, smooth = [log10(rate) for rate in report.learning_rates], report.smoothed
    highest = CEILING * max(smooth[: smooth.index(min(smooth)) + 1])
    shown = [place for place, loss in enumerate(smooth) if loss <= highest]
    x = [places[place] for place in shown]
    lines = [
        Line(x, [min(report.losses[place], highest) for place in shown], "raw"),
        Line(x, [smooth[place] for place in shown], "smooth"),
    ]
    mark = None
    if report.suggestion is not None:
        at = log10(report.suggestion)
        nearest = min(shown, key=lambda place: abs(places[place] - at))
        mark = (at, smooth[nearest], both(rate_text(report.suggestion)))
    ends = {"low": rate_text(report.learning_rates[0]), "high": rate_text(report.learning_rates[-1])}
    about = say("alt.rates", **ends, lowest=rate_text(report.lowest))
    axis = Axis(say("rates.axis"), (places[0], max(x[-1], places[0] + 1)), powers=True)
    return line_chart(lines, about=about, axis=axis, mark=mark)


def rate_text(rate: float | None) -> str:
    """A learning rate as people write it: 5e-05."""
    return NOTHING if rate is None else f"{rate:.1e}"
