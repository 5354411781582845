"""The part of the report that tells how the strategy was found, where a run was left to find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.evaluation.languages import both, named, say
from chainrule.evaluation.layer_charts import part_words
from chainrule.evaluation.quantities import NOTHING, count_text, duration, finite, listed, mapping
from chainrule.evaluation.record import Record


def choice(record: Record) -> dict[str, Any]:
    """What was found, every trial, and what the layers showed; empty where nothing was left open."""
    found, asked = mapping(record.resolved.get("choice")), mapping(record.asked.get("strategy"))
    if not found or asked.get("name") != found.get("by"):  # else the recipe has it from another run
        return {}
    trials = [mapping(item) for item in listed(found.get("trials"))]
    rate = finite(mapping(record.resolved.get("optimizer")).get("learning_rate"))
    took = duration(found.get("seconds"))
    return {
        "about": say(
            "choice.about" if trials else "choice.untried",
            strategy=str(mapping(record.resolved.get("strategy")).get("name", "")),
            rate=NOTHING if rate is None else f"{rate:g}",
            seconds=took,
        ),
        "reasons": [both(str(reason)) for reason in listed(found.get("reasons"))],
        "metric": named("metric", found.get("metric", "")),
        "trials": [_trial(item) for item in trials],
        "probe": named("metric", found["probe_metric"]) if found.get("probe_metric") else None,
        "layers": [_layer(mapping(item)) for item in reversed(listed(found.get("layers")))],
    }


def _trial(item: Mapping[str, Any]) -> dict[str, Any]:
    options = ", ".join(f"{name} {value}" for name, value in mapping(item.get("options")).items())
    score, error = finite(item.get("score")), finite(item.get("standard_error"))
    rate = finite(item.get("learning_rate"))
    return {
        "round": count_text(item.get("round")),
        "strategy": str(item.get("strategy", "")) + (f" ({options})" if options else ""),
        "rate": NOTHING if rate is None else f"{rate:g}",
        "steps": count_text(item.get("steps")),
        "rows": count_text(item.get("rows")),
        "score": str(item.get("note") or NOTHING) if score is None else f"{score:.4f}",
        "error": f"± {error:.4f}" if score is not None and error else "",
        "parameters": count_text(item.get("trained_parameters")),
        "seconds": duration(item.get("seconds")),
    }


def _layer(item: Mapping[str, Any]) -> dict[str, Any]:
    probe, scale = finite(item.get("probe")), finite(item.get("noise_scale"))
    return {
        "name": part_words(str(item.get("layer", ""))),
        "probe": NOTHING if probe is None else f"{probe:.3f}",
        "scale": NOTHING if scale is None else count_text(round(scale)),
    }
