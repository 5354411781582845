"""From what a caller asks for to the recipe that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from chainrule.core.engine import Engine
from chainrule.core.parsing import merge
from chainrule.core.recipe import Recipe, parse_recipe, read_recipe
from chainrule.errors import Problem, RecipeError, Where
from chainrule.system.files import free_path


class Flags(TypedDict, total=False):
    """Settings of a training with a name of their own; the command line has the same."""

    task: str
    model: str
    strategy: str
    fields: Mapping[str, str]
    max_length: int
    epochs: float
    minutes: float
    folds: int
    seed: int
    watch_gradients: bool


class WritingFlags(TypedDict, total=False):
    """How `predict` writes texts, for a model that does."""

    max_new_tokens: int
    beams: int
    temperature: float
    top_p: float
    seed: int


class PredictFlags(WritingFlags, total=False):
    """The same, and whose workers predict a file; this process without."""

    engine: Engine | None


class Limits(TypedDict, total=False):
    """What `compress` may cost: points (hundredths) that the score may fall, points at the worse end of the 95 %
    interval of the difference, and whether a model that is no faster is taken for its size."""

    loss: float | None
    worst: float | None
    allow_slower: bool


class StudentLimits(TypedDict, total=False):
    """How long `distill` trains, the share of its teacher's score that a student must reach, whether it may be no
    faster, and keys of the student's recipe, such as {"distillation.hidden": 1.0}."""

    epochs: float | None
    kept: float
    allow_slower: bool
    settings: Mapping[str, Any]


class WatchingFlags(TypedDict, total=False):
    """How closely a model is watched, which `chainrule.monitoring.settings` explains, and who is told."""

    window: str | None
    cycle: str | None
    false_alarms: str | None
    monitor_rows: int | None
    keep_text: str | float | None
    segment: str | None
    low_confidence: float | None
    webhook: str | None


class ServingFlags(WatchingFlags, total=False):
    """Where `serve` listens, who may ask, what it keeps, and limits, which `chainrule.serving.limits` explains."""

    monitor: str | Path | None
    split: str | None
    shadows: Sequence[str] | None
    reload: float | None
    memory: str | None
    engine: Engine | None
    host: str
    port: int
    keys: str | Path | None
    no_auth: bool
    origins: Sequence[str]
    hosts: Sequence[str]
    max_rows: int | None
    max_text: int | None
    max_tokens: int | None
    max_body: int | None
    queue: int | None
    writing_queue: int | None
    timeout: float | None
    wait: float | None
    batch_tokens: int | None
    reading: float | None


_FLAG_KEYS = {
    "task": "task",
    "model": "model.name",
    "strategy": "strategy",
    "max_length": "model.max_length",
    "epochs": "training.epochs",
    "minutes": "training.minutes",
    "folds": "training.folds",
    "seed": "seed",
    "watch_gradients": "training.watch_gradients",
}


def asked_recipe(
    verb: str,
    source: Any,
    recipe: Recipe | str | Path | None,
    flags: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    default_model: Callable[[str], str],
) -> Recipe:
    """The given recipe, or the defaults, with flags and then settings on top.

    Args:
        verb: who asks.
        source: where the rows are, or an object that holds them.
        settings: dotted keys.
        default_model: task -> the model to take where none is named.

    Raises:
        RecipeError: unknown keys, values out of range, or nothing that says where the rows are.
        TypeError: there is no such flag.
    """
    unknown = sorted(set(flags) - Flags.__annotations__.keys())
    if unknown:
        raise TypeError(f"{verb}() has no {', '.join(unknown)}; it has {', '.join(Flags.__annotations__)}")
    changes = {_FLAG_KEYS[name]: value for name, value in flags.items() if name in _FLAG_KEYS}
    changes |= {**field_changes(flags.get("fields")), **(settings or {})}
    if source is not None:  # rows in memory have no name that a recipe could give again
        changes["data.source"] = str(source) if isinstance(source, str | Path) else None
    if isinstance(recipe, Recipe):
        chosen = _as_predicted(recipe, recipe.replace(changes))
    elif recipe is not None:
        chosen = read_recipe(Path(recipe), changes)
        if chosen.prediction is not None:
            chosen = _as_predicted(read_recipe(Path(recipe)), chosen)
    else:
        changes.setdefault("task", "text-classification")
        if not {"model", "model.name"} & changes.keys():
            task = changes.get("task.name", changes["task"])
            changes["model.name"] = default_model(task) if isinstance(task, str) else "minilm"
        chosen = parse_recipe(merge({}, changes))
    if chosen.data.source is None and source is None:
        problem = Problem(
            where=Where(field="data.source"),
            expected="a file, a folder, or a catalog or hub name",
            got="nothing",
            todo="Name the data: chainrule train DATA …",
        )
        raise RecipeError("The recipe does not say where the rows are.", [problem])
    return chosen


def settled_keys(flags: Mapping[str, Any], settings: Mapping[str, Any] | None) -> frozenset[str]:
    """The dotted keys of a recipe that flags and settings have set."""
    return frozenset({_FLAG_KEYS[name] for name in flags if name in _FLAG_KEYS} | set(settings or {}))


def _as_predicted(before: Recipe, after: Recipe) -> Recipe:
    """The changed recipe, without what was predicted of it before the change."""
    return after if after == before else after.replace({"prediction": None})


def field_changes(fields: Mapping[str, str] | None) -> dict[str, str]:
    """Task field -> column, as dotted keys."""
    return {f"data.fields.{name}": column for name, column in (fields or {}).items()}


def free_folder(recipe: Recipe) -> Path:
    """A folder under runs/ that is not there yet, named after the model and the data."""
    names = (Path(name).stem for name in (recipe.model.name, recipe.data.source or "data"))
    return free_path(Path("runs") / "-".join(names))
