"""The top of the report: the verdict in plain words, its charts, and the key numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from chainrule.core.artifact import FOLDS
from chainrule.evaluation.baselines import UNTUNED
from chainrule.evaluation.charts import Interval, difference_chart, interval_chart
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.quantities import (
    SHARES,
    count_text,
    difference_text,
    duration,
    finite,
    in_points,
    mapping,
    memory,
    metric_text,
    p_text,
    quantity,
)
from chainrule.evaluation.record import Record
from chainrule.evaluation.verdicts import baseline_name

_MEETING = re.compile(r"(?<=[\u4e00-\u9fff])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u4e00-\u9fff])")


def verdict(record: Record) -> dict[str, Any]:
    """What the page says first.

    Returns:
        {"status", "status_name": Words, "eyebrow": [Words], "headline": Words, "notes": [Words],
         "command": str or None, "charts": [(title, chart)]}.
    """
    evaluation = record.evaluation
    if not evaluation:
        return _without_evaluation(record)
    judged = mapping(evaluation.get("verdict"))
    status = _status(evaluation)
    split, folds = evaluation.get("split"), _folds(evaluation)
    measured = say("measured.split", split=named("split", split)) if split else say("measured.file")
    notes = _notes(record, evaluation, judged, status)
    return {
        "status": status,
        "status_name": say(f"status.{status}"),
        "eyebrow": [
            say("measured.folds", folds=count_text(folds.get("count"))) if folds else measured,
            say("rows", rows=count_text(evaluation.get("rows"))),
        ],
        "headline": _headline(record, judged, status),
        "notes": notes,
        "command": f"chainrule evaluate {quote(record.name)} DATA --split test" if split == "validation" else None,
        "charts": [chart for chart in (_comparison(record), _difference(record, judged)) if chart],
    }


def key_numbers(record: Record) -> list[dict[str, Words]]:
    """The few numbers that sum up the run, each with its name and a note; only those that are known."""
    summary, evaluation, name = record.summary, record.evaluation, record.primary_metric
    found: list[dict[str, Words]] = []

    def add(label: Words, value: object, note: Words | None = None) -> None:
        found.append({"label": label, "value": both(value), "note": note or both("")})

    estimate = mapping(mapping(evaluation.get("metrics")).get(name))
    last = mapping(summary.get("metrics")).get(name)
    if estimate:
        low, high = metric_text(name, estimate.get("low"), unit=False), metric_text(name, estimate.get("high"))
        label = say("number.split", metric=named("metric", name), split=_split_name(evaluation))
        add(label, metric_text(name, estimate.get("value")), say("number.interval", low=low, high=high))
    elif finite(last) is not None:
        label = say("number.split", metric=named("metric", name), split=named("split", "validation"))
        add(label, metric_text(name, last))
    if finite(summary.get("seconds")) is not None:
        total = duration(summary.get("seconds_total"))
        note = say("number.seconds.note", total=total) if finite(summary.get("seconds_total")) is not None else None
        add(say("number.seconds"), duration(summary["seconds"]), note)
    if finite(summary.get("trained_parameters")) is not None:
        add(say("number.parameters"), quantity(summary["trained_parameters"]), _strategy_note(record))
    if finite(summary.get("peak_memory_mb")) is not None:
        add(say("number.memory"), memory(summary["peak_memory_mb"]), say("number.memory.note"))
    if not record.finished and record.progress.loss.step:
        add(say("number.steps"), count_text(record.progress.loss.step[-1]))
    return found


def baseline_table(record: Record) -> dict[str, Any]:
    """All metrics of the model and of the baselines, a row each.

    Returns:
        {"metrics": [Words], "rows": [{"name", "about", "kind", "judged", "cells": [(value, interval)]}],
         "about": Words}, or empty.
    """
    evaluation = record.evaluation
    metrics = mapping(evaluation.get("metrics"))
    if not metrics:
        return {}
    primary = record.primary_metric
    names = sorted(metrics, key=lambda name: (name != primary, name == "loss"))
    chosen = mapping(evaluation.get("verdict")).get("baseline")
    rows = [
        {
            "name": _model(evaluation),
            "about": both(""),
            "kind": "model",
            "judged": False,
            "cells": _cells(metrics, names),
        }
    ]
    for name, estimates in _baselines(evaluation):
        about = named("baseline-about", name)
        rows.append(
            {
                "name": _baseline(name),
                "about": about if about.en != name else both(""),
                "kind": "baseline",
                "judged": name == chosen,
                "cells": _cells(mapping(estimates), names),
            }
        )
    heads = [say("table.percent", name=named("metric", n)) if n in SHARES else named("metric", n) for n in names]
    texts = mapping(mapping(evaluation.get("detail")).get("written"))
    if texts:
        about = say("baselines.written", rows=count_text(texts.get("rows")), of=count_text(texts.get("of")))
    else:
        about = say("baselines.untuned" if UNTUNED in mapping(evaluation.get("baselines")) else "baselines.about")
    return {"metrics": heads, "rows": rows, "about": about}


def every_evaluation(record: Record) -> list[dict[str, Any]]:
    """The evaluations kept in the run, a row each, where there is more than one."""
    if len(record.evaluations) < 2:
        return []
    found = []
    for evaluation in record.evaluations.values():
        name = str(evaluation.get("primary_metric", ""))
        value, interval = _cells(mapping(evaluation.get("metrics")), [name])[0]
        status = _status(evaluation)
        found.append(
            {
                "split": _split_name(evaluation),
                "data": short_path(evaluation.get("data") or ""),
                "rows": count_text(evaluation.get("rows")),
                "value": value,
                "interval": interval,
                "status": status,
                "verdict": say(f"status.{status}"),
            }
        )
    return found


def short_path(path: object) -> str:
    """A path as shown in a file that may be handed on: of an absolute one only the last two parts."""
    text = str(path)
    absolute = text.startswith(("/", "~")) or text[1:3] in (":\\", ":/")
    parts = text.replace("\\", "/").rstrip("/").split("/")
    return "…/" + "/".join(parts[-2:]) if absolute and len(parts) > 3 else text


def quote(text: str) -> str:
    """`text` as one word of a shell command."""
    plain = all(letter.isalnum() or letter in "._-/=:@+" for letter in text) and text
    return text if plain else "'" + text.replace("'", "'\"'\"'") + "'"


def _without_evaluation(record: Record) -> dict[str, Any]:
    status = "unjudged" if record.finished else "unfinished"
    note = say(f"verdict.{status}.note")
    steps = record.progress.loss.step
    if status == "unfinished" and steps:
        planned = finite(record.progress.start.get("steps"))
        values = {"step": count_text(steps[-1]), "steps": count_text(planned)}
        note = say("verdict.unfinished.step" if planned is None else "verdict.unfinished.at", **values)
    return {
        "status": status,
        "status_name": say(f"status.{status}"),
        "eyebrow": [],
        "headline": say(f"verdict.{status}"),
        "notes": [note, *_damage(record)],
        "command": f"chainrule evaluate {quote(record.name)} DATA --split test" if status == "unjudged" else None,
        "charts": [],
    }


def _status(evaluation: Mapping[str, Any]) -> str:
    judged = mapping(evaluation.get("verdict"))
    if not judged.get("baseline") or finite(judged.get("difference")) is None:
        return "alone"
    if finite(judged.get("low")) is None:
        return "few"
    if judged.get("better"):
        return "better"
    worse = mapping(mapping(evaluation.get("detail")).get("verdict")).get("worse")
    if worse is None:
        worse = (finite(judged.get("high")) or 0.0) < 0
    return "worse" if worse else "unsure"


def _headline(record: Record, judged: Mapping[str, Any], status: str) -> Words:
    name = record.primary_metric
    metric = named("metric", name)
    if status == "alone":
        value = mapping(mapping(record.evaluation.get("metrics")).get(name)).get("value")
        said = say("verdict.alone", metric=metric, value=metric_text(name, value))
        return Words(said.en[:1].upper() + said.en[1:], said.zh)
    values = {"baseline": _baseline(judged["baseline"]), "metric": metric}
    if status in ("unsure", "few"):
        return _spaced(say(f"verdict.{status}", **values))
    size = difference_text(name, abs(finite(judged["difference"]) or 0.0))
    return _spaced(say(f"verdict.{status}.{_unit(name)}", difference=size, **values))


def _spaced(words: Words) -> Words:
    """With the space that Chinese typography sets between Chinese characters and Latin letters."""
    return Words(words.en, _MEETING.sub(" ", words.zh))


def _notes(record: Record, evaluation: Mapping[str, Any], judged: Mapping[str, Any], status: str) -> list[Words]:
    counted = finite(mapping(mapping(evaluation.get("detail")).get("verdict")).get("rows"))
    rows, name = count_text(evaluation.get("rows") if counted is None else counted), record.primary_metric
    notes = []
    if status == "alone":
        notes.append(say("verdict.alone.note", rows=rows))
    elif status == "few":
        notes.append(say("verdict.few.note", rows=rows))
    else:
        p = p_text(judged.get("p_value"))
        values = {key: difference_text(name, judged.get(key), signed=True) for key in ("difference", "low", "high")}
        notes.append(say(f"verdict.interval.{_unit(name)}", p=say("verdict.p", p=p) if p else "", **values))
        low, high = finite(judged.get("low")), finite(judged.get("high"))
        if status == "unsure" and low is not None and high is not None and low <= 0 <= high:
            notes.append(say("verdict.zero"))
        more = finite(mapping(mapping(evaluation.get("detail")).get("verdict")).get("rows_to_settle"))
        if status == "unsure" and more:
            notes.append(say("verdict.settle", rows=count_text(more)))
        notes.append(say("verdict.paired.folds" if _folds(evaluation) else "verdict.paired", rows=rows))
    if folds := _folds(evaluation):
        spread = mapping(mapping(folds.get("scores")).get(name))
        mean, deviation = (metric_text(name, spread.get(key)) for key in ("mean", "deviation"))
        notes.append(say("verdict.folds", folds=count_text(folds.get("count"))))
        notes.append(say("verdict.folds.spread", metric=named("metric", name), mean=mean, deviation=deviation))
    if evaluation.get("limit"):
        notes.append(say("verdict.limit", limit=count_text(evaluation["limit"])))
    if not record.finished:
        notes.append(say("verdict.unfinished"))
    notes += _damage(record)
    if evaluation.get("split") == "validation":
        notes.append(say("verdict.validation"))
    return notes


def _folds(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is told of the folds; empty where the model itself was judged."""
    return mapping(mapping(evaluation.get("detail")).get(FOLDS)) if evaluation.get("split") == FOLDS else {}


def _model(evaluation: Mapping[str, Any]) -> Words:
    return say("model.folds" if _folds(evaluation) else "model.this")


def _damage(record: Record) -> list[Words]:
    return [say("verdict.damaged", files=", ".join(record.damaged))] if record.damaged else []


def _unit(name: str) -> str:
    return "points" if in_points(name) else "raw"


def _baseline(name: object) -> Words:
    return Words(baseline_name(str(name), "en"), baseline_name(str(name), "zh"))


def _split_name(evaluation: Mapping[str, Any]) -> Words:
    return named("split", evaluation.get("split") or "none")


def _strategy_note(record: Record) -> Words | None:
    strategy = record.summary.get("strategy") or record.resolved.get("strategy")
    if isinstance(strategy, Mapping):
        strategy = strategy.get("name")
    if not strategy:
        return None
    every, trained = finite(record.summary.get("parameters")), finite(record.summary.get("trained_parameters"))
    if not every or trained is None:
        return say("number.strategy.note", strategy=strategy)
    share = f"{100 * trained / every:.3g}\u202f%"
    return say("number.parameters.note", share=share, all=quantity(every), strategy=strategy)


def _baselines(evaluation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The baselines, first the one the verdict compares with."""
    chosen = mapping(evaluation.get("verdict")).get("baseline")
    return sorted(mapping(evaluation.get("baselines")).items(), key=lambda item: item[0] != chosen)


def _cells(estimates: Mapping[str, Any], names: list[str]) -> list[tuple[str, str]]:
    cells = []
    for name in names:
        estimate = mapping(estimates.get(name))
        value, low, high = (metric_text(name, estimate.get(key), unit=False) for key in ("value", "low", "high"))
        cells.append((value, f"{low} – {high}" if finite(estimate.get("low")) is not None else ""))
    return cells


def _interval(name: str, shown: Words, estimate: Mapping[str, Any], kind: str) -> Interval | None:
    value, low, high = (finite(estimate.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    low, high = value if low is None else low, value if high is None else high
    return Interval(shown, value, low, high, metric_text(name, value), kind)


def _comparison(record: Record) -> tuple[Words, Markup] | None:
    name, evaluation = record.primary_metric, record.evaluation
    found = [_interval(name, _model(evaluation), mapping(mapping(evaluation.get("metrics")).get(name)), "model")]
    for baseline, estimates in _baselines(evaluation):
        estimate = mapping(mapping(estimates).get(name))
        found.append(_interval(name, _baseline(baseline), estimate, "baseline"))
    rows = [row for row in found if row is not None]
    if not rows:
        return None
    items = [
        say("alt.item", name=row.name, value=row.text, low=metric_text(name, row.low), high=metric_text(name, row.high))
        for row in rows
    ]
    listed = Words("; ".join(item.en for item in items), "；".join(item.zh for item in items))
    metric = named("metric", name)
    axis = say("chart.percent", metric=metric) if name in SHARES else metric
    about = say("alt.compare", metric=metric, list=listed)
    return say("chart.compare"), interval_chart(rows, about=about, x_name=axis, scale=_scale(name))


def _difference(record: Record, judged: Mapping[str, Any]) -> tuple[Words, Markup] | None:
    name = record.primary_metric
    value, low, high = (finite(judged.get(key)) for key in ("difference", "low", "high"))
    if value is None or low is None or high is None:
        return None
    written = {key: difference_text(name, judged[key], signed=True) for key in ("difference", "low", "high")}
    text = f"{written['difference']}  ({written['low']} – {written['high']})"
    kind = "model" if low > 0 else "baseline"
    chart = difference_chart(
        Interval(say("chart.difference"), value, low, high, text, kind),
        about=say("alt.difference", **written),
        x_name=say(f"chart.difference.axis.{_unit(name)}", metric=named("metric", name)),
        sides=(say("chart.side.left"), say("chart.side.right")),
        scale=100.0 if in_points(name) else 1.0,
    )
    return say("chart.difference"), chart


def _scale(name: str) -> float:
    return 100.0 if name in SHARES else 1.0
