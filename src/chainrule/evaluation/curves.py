"""The curves of training and what happened on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.core.task import LOWER_IS_BETTER
from chainrule.evaluation.charts import Axis, Line, line_chart, smooth, thin
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.quantities import SHARES, count_text, duration, finite, mapping, memory, metric_text
from chainrule.evaluation.record import Curve, Record

TREND_POINTS = 300
MOST_INCIDENTS = 12
Range = tuple[float, float]


def curves(record: Record) -> list[dict[str, Any]]:
    """The charts of training: {"title", "chart", "legend": [(kind, Words)]} each, over the same x axis."""
    unit = _x_unit(record)
    x_range = _x_range(record, unit)
    found = []
    if record.progress.loss.value:
        found.append(_loss(record, unit, x_range))
    metric = record.progress.metrics.get(record.primary_metric)
    if metric and metric.value:
        found.append(_validation(record, metric, unit, x_range))
    if record.progress.learning_rate.value:
        found.append(_rate(record, unit, x_range))
    return found


def facts(record: Record) -> list[tuple[Words, Words]]:
    """What happened during training, name and value."""
    progress, summary = record.progress, record.summary
    if not progress.loss.step:
        return []
    done, planned = count_text(progress.loss.step[-1]), finite(progress.start.get("steps"))
    of_all = say("fact.steps.of", done=done, planned=count_text(planned)) if planned else both(done)
    found = [(say("fact.steps"), of_all)]
    best = finite(progress.finish.get("best_step")) or (progress.best[0] if progress.best else None)
    if best is not None:
        found.append((say("fact.best"), say("fact.step", step=count_text(best))))
    seconds = progress.totals["seconds"]
    for name in ("rows", "tokens"):
        if seconds and progress.totals[name]:
            found.append((say(f"fact.{name}"), both(count_text(progress.totals[name] / seconds))))
    found += [_incident(event) for event in progress.incidents[:MOST_INCIDENTS]]
    precision = summary.get("precision") or record.environment.get("precision")
    if precision:
        found.append((say("environment.precision"), both(precision)))
    found += _predicted(record)
    why = summary.get("stopped") or progress.finish.get("reason")
    if why:
        found.append((say("fact.stopped"), named("stopped", why)))
    return found


def _predicted(record: Record) -> list[tuple[Words, Words]]:
    """What was expected of the training before it began, beside what it took."""
    expected, found = mapping(record.summary.get("predicted")), []
    for name, shown in (("seconds", duration), ("peak_memory_mb", memory)):
        before, after = finite(expected.get(name)), finite(record.summary.get(name))
        if before and after:
            off = f"{100 * (after - before) / before:+.0f}\u202f%"
            found.append(
                (
                    say(f"fact.predicted.{name}"),
                    say("fact.predicted", before=shown(before), after=shown(after), off=off),
                )
            )
    return found


def _incident(event: dict[str, Any]) -> tuple[Words, Words]:
    """An interruption, a shortage of memory or a divergence, in words."""
    known = {name: count_text(finite(event.get(name)) or 0.0) for name in ("step", "micro_batch_tokens", "back_to")}
    return say(f"fact.{event['event']}"), say(f"fact.{event['event']}.at", **known)


def _x_unit(record: Record) -> str:
    known = [record.progress.loss, *record.progress.metrics.values()]
    epochs = [curve.epoch[-1] for curve in known if curve.epoch]
    return "epoch" if epochs and max(epochs) >= 1 and all(curve.has_epochs for curve in known) else "step"


def _x_range(record: Record, unit: str) -> Range:
    known = [record.progress.loss, record.progress.learning_rate, *record.progress.metrics.values()]
    return 0.0, max([value for curve in known for value in curve.x(unit)], default=1.0) or 1.0


def _loss(record: Record, unit: str, x_range: Range) -> dict[str, Any]:
    loss = record.progress.loss
    trend_x, trend = loss.x(unit), smooth(loss.value)
    stride = max(1, len(trend) // TREND_POINTS)
    lines = [
        Line(*thin(loss.x(unit), loss.value), "raw"),
        Line([*trend_x[::stride], trend_x[-1]], [*trend[::stride], trend[-1]], "smooth"),
    ]
    legend = [("raw", say("chart.raw")), ("smooth", say("chart.smooth"))]
    valid = record.progress.metrics.get("loss")
    if valid and valid.value:
        lines.append(Line(valid.x(unit), valid.value, "valid", dots=len(valid.value) <= 60))
        legend.append(("valid", say("chart.valid")))
    about = say("alt.loss", first=f"{trend[0]:.3g}", last=f"{trend[-1]:.3g}", steps=count_text(loss.step[-1]))
    chart = line_chart(lines, about=about, axis=Axis(say(f"chart.{unit}"), x_range), from_zero=True)
    return {"title": say("chart.loss"), "chart": chart, "legend": legend}


def _validation(record: Record, metric: Curve, unit: str, x_range: Range) -> dict[str, Any]:
    name, share = record.primary_metric, record.primary_metric in SHARES
    best = _best(metric, record.progress.best, name)
    title = say("chart.metric.percent" if share else "chart.metric", metric=named("metric", name))
    values = ", ".join(metric_text(name, value) for value in metric.value[:40])
    chart = line_chart(
        [Line(metric.x(unit), metric.value, "smooth", dots=len(metric.value) <= 60)],
        about=say("alt.metric", metric=named("metric", name), list=values),
        axis=Axis(say(f"chart.{unit}"), x_range),
        scale=100.0 if share else 1.0,
        mark=(metric.x(unit)[best], metric.value[best], both(metric_text(name, metric.value[best]))),
    )
    title = Words(title.en[:1].upper() + title.en[1:], title.zh)
    return {"title": title, "chart": chart, "legend": [("ring", say("chart.kept"))]}


def _rate(record: Record, unit: str, x_range: Range) -> dict[str, Any]:
    rate = record.progress.learning_rate
    x, y = thin(rate.x(unit), rate.value, TREND_POINTS)
    about = say("alt.rate", high=f"{max(rate.value):.3g}", last=f"{rate.value[-1]:.3g}")
    line = Line(x, y, "smooth")
    chart = line_chart([line], about=about, axis=Axis(say(f"chart.{unit}"), x_range), from_zero=True)
    return {"title": say("chart.rate"), "chart": chart, "legend": []}


def _best(metric: Curve, marked: Sequence[float], name: str) -> int:
    if marked and marked[0] in metric.step:
        return metric.step.index(marked[0])
    choose = min if name in LOWER_IS_BETTER else max
    return metric.value.index(choose(metric.value))
