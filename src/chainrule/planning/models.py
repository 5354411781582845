"""The models that come into question, and how well each reads the rows."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path

from chainrule.core.recipe import Recipe
from chainrule.core.report import Report
from chainrule.core.task import Task
from chainrule.models.catalog import MODELS
from chainrule.models.folder import stored_shapes, weight_files
from chainrule.models.place import locate
from chainrule.models.scratch import SCRATCH
from chainrule.planning.profile import Fit, look_at_tokens
from chainrule.tasks.prepare import Prepared

UNREADABLE = 0.1  # of the tokens unknown: what these rows say is largely hidden from the model
_LICENCE = re.compile(r"^licen[sc]e:\s*(\S+)", re.MULTILINE)


class Candidate(Report):
    """A model and how it reads the rows.

    Attributes:
        place: "catalog", "folder", "hub", or "from scratch".
        licence: as the catalog or the model card says; null where neither does.
        parameters, layers: null until it was loaded.
    """

    name: str
    place: str
    licence: str | None
    fit: Fit
    parameters: int | None = None
    layers: int | None = None

    @property
    def reads(self) -> bool:
        """Whether its vocabulary has most of what the rows say."""
        return self.fit.unknown < UNREADABLE


def place_of(name: str) -> tuple[str, str | None]:
    """Where a model comes from, and its licence."""
    if name in SCRATCH:
        return "from scratch", None
    if name in MODELS:
        return "catalog", MODELS[name].asset.licence
    folder = Path(locate(name))
    card = folder / "README.md"
    found = _LICENCE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return "folder" if folder.is_dir() else "hub", found[1] if found else None


def look_at_model(name: str, prepared: Prepared) -> Candidate:
    """A model, and how it reads rows that were encoded for it; its weights are not loaded."""
    place, licence = place_of(name)
    size = None if place == "from scratch" else _stored_numbers(name)
    return Candidate(name=name, place=place, licence=licence, parameters=size, fit=look_at_tokens(prepared))


def fallback(task: Task, names: Collection[str], recipe: Recipe) -> str | None:
    """A model for rows that none of those asked for reads; None where the task has none."""
    others = [name for name, made in SCRATCH.items() if task.head in made.heads and name not in names]
    return others[0] if others and not recipe.structure.makes_another_model else None


def _stored_numbers(name: str) -> int | None:
    """How many numbers the weights of a model hold, as their files say; None where they are not on this machine."""
    if name in MODELS:
        return MODELS[name].parameters
    folder = Path(locate(name))
    if not folder.is_dir():
        return None
    shapes = stored_shapes(weight_files(folder, name), name)
    return sum(math.prod(shape) for shape in shapes.values())
