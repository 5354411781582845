"""What a run folder holds, read as it is: any file may be missing (a run that did not finish) or damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chainrule.core.artifact import FOLDS, MANIFEST
from chainrule.evaluation.quantities import finite
from chainrule.evaluation.trace import Trace

MAX_YAML_BYTES = 1_000_000
_PARTIAL = re.compile(r"^\.(.+)\.[^.]+\.partial$")
INCIDENTS = ("resumed", "memory", "diverged")


@dataclass(frozen=True)
class Curve:
    """One number per step. `epoch` is as long as `step`, or empty when the events do not say."""

    step: list[float] = field(default_factory=list)
    epoch: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def add(self, event: Mapping[str, Any], value: Any) -> None:
        """Take one event's value; values that are missing or not finite are left out of the drawing."""
        step, epoch, number = finite(event.get("step")), finite(event.get("epoch")), finite(value)
        if step is None or number is None:
            return
        self.step.append(step)
        self.value.append(number)
        if epoch is not None:
            self.epoch.append(epoch)

    def forget(self, step: float) -> None:
        """Leave out what came after a step that training went back to."""
        kept = sum(at <= step for at in self.step)
        for values in (self.step, self.epoch, self.value):
            del values[kept:]

    def x(self, unit: str) -> list[float]:
        """The x values in `unit`: "epoch" or "step"."""
        return self.epoch if unit == "epoch" else self.step

    @property
    def has_epochs(self) -> bool:
        return len(self.epoch) == len(self.step)


@dataclass(frozen=True)
class Progress:
    """The events of a run, turned into curves.

    Attributes:
        metrics: validation metrics by name, over steps.
        best: the step whose weights were kept, once there was an evaluation.
        totals: rows, tokens and seconds of all steps.
        incidents: the events of runs that were taken up, of memory that ran short, and of training that diverged.
    """

    loss: Curve = field(default_factory=Curve)
    learning_rate: Curve = field(default_factory=Curve)
    gradient_norm: Curve = field(default_factory=Curve)
    metrics: dict[str, Curve] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    finish: dict[str, Any] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("rows", "tokens", "seconds"), 0.0))
    incidents: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """The files of one run folder as plain values; empty where there is none.

    Attributes:
        name: the run's name as a path to type, without the temporary name it has while it is being written.
        trace: of its layers, where it was watched.
        damaged: the files that are there but cannot be read.
    """

    name: str
    asked: dict[str, Any]
    resolved: dict[str, Any]
    environment: dict[str, Any]
    check: dict[str, Any]
    summary: dict[str, Any]
    manifest: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    progress: Progress
    trace: Trace
    damaged: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return bool(self.summary or self.progress.finish)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The evaluation the report is about: by folds, else on the test split, on other new rows, or on validation."""
        order = sorted(self.evaluations, key=lambda name: (name != FOLDS, name != "test", name == "validation", name))
        return self.evaluations[order[0]] if order else {}

    @property
    def task(self) -> str:
        """The task's name, from whichever file says it."""
        named = self.resolved.get("task") or self.asked.get("task")
        if isinstance(named, Mapping):
            named = named.get("name")
        return str(self.evaluation.get("task") or self.check.get("task") or self.manifest.get("task") or named or "")

    @property
    def primary_metric(self) -> str:
        """The name of the metric that decides."""
        sources = (self.evaluation, self.summary, self.manifest, self.progress.start)
        return next((str(source["primary_metric"]) for source in sources if source.get("primary_metric")), "")


def read_record(folder: Path) -> Record:
    """Read what is in a run folder.

    Args:
        folder: a run folder, finished or not.
    """
    damaged: list[str] = []
    progress, trace = _progress(folder / "events.jsonl", damaged)
    summary = _json(folder / "summary.json", damaged)
    evaluations = {path.stem: _json(path, damaged) for path in sorted((folder / "evaluations").glob("*.json"))}
    return Record(
        name=_name(folder, summary),
        asked=_yaml(folder / "recipe.yaml", damaged),
        resolved=_yaml(folder / "resolved.yaml", damaged),
        environment=_json(folder / "environment.json", damaged),
        check=_json(folder / "check.json", damaged),
        summary=summary,
        manifest=_json(folder / "artifact" / MANIFEST, damaged),
        evaluations={name: value for name, value in evaluations.items() if value},
        progress=progress,
        trace=trace,
        damaged=tuple(damaged),
    )


def _name(folder: Path, summary: Mapping[str, Any]) -> str:
    given = summary.get("run")
    if isinstance(given, str) and given and not Path(given).is_absolute():
        return given
    name = Path(given).name if isinstance(given, str) and given else folder.resolve().name
    partial = _PARTIAL.match(name)
    return partial.group(1) if partial else name


def _json(path: Path, damaged: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    damaged.append(path.name)
    return {}


def _yaml(path: Path, damaged: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_YAML_BYTES else "[]"
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
        value = None if aliased else yaml.safe_load(text)  # nested aliases can grow without bound
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    damaged.append(path.name)
    return {}


def _events(path: Path, damaged: list[str]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return  # torn: the run was stopped while writing
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict):
                yield event
            elif path.name not in damaged:
                damaged.append(path.name)


def _progress(path: Path, damaged: list[str]) -> tuple[Progress, Trace]:
    progress, trace = Progress(), Trace()
    for event in _events(path, damaged):
        trace.add(event)
        kind = event.get("event")
        if kind == "start":
            progress.start.update(event)
        elif kind == "finish":
            progress.finish.update(event)
        elif kind == "step":
            progress.loss.add(event, event.get("loss"))
            progress.learning_rate.add(event, event.get("learning_rate"))
            progress.gradient_norm.add(event, event.get("gradient_norm"))
            for name in progress.totals:
                progress.totals[name] += finite(event.get(name)) or 0.0
        elif kind == "evaluation" and isinstance(event.get("metrics"), dict):
            for name, value in event["metrics"].items():
                progress.metrics.setdefault(str(name), Curve()).add(event, value)
            step = finite(event.get("step"))
            if event.get("best") and step is not None:
                progress.best[:] = [step]
        elif kind in INCIDENTS and finite(event.get("step")) is not None:
            progress.incidents.append(event)
            back = finite(event.get("back_to"))
            if kind == "diverged" and back is not None:
                for curve in (
                    progress.loss,
                    progress.learning_rate,
                    progress.gradient_norm,
                    *progress.metrics.values(),
                ):
                    curve.forget(back)
    return progress, trace
