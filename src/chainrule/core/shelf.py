"""Shelves: interchangeable parts by name, each with typed options of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from chainrule.core.recipe import Section, Spec, parse_options, unknown_name


class NoOptions(Section):
    """For parts without options."""


@dataclass(frozen=True)
class Entry:
    """One line of a shelf.

    Attributes:
        options: what a recipe may say about the part.
        make: makes the part, from its options first and then from whatever the shelf hands to all its parts.
    """

    options: type[Section]
    make: Callable[..., Any]
    summary: str


def take(
    shelf: Mapping[str, Entry], spec: Spec, kind: str, fields: tuple[str, str] | None = None
) -> Callable[..., Any]:
    """What makes the part that a recipe names, with its options in place.

    Args:
        kind: what the shelf holds, in the singular, used in messages ("optimizer", "loss", …).
        fields: where in the recipe the name and the options are, if not at `kind`.name and `kind`.options.

    Raises:
        RecipeError: no such part, or options it does not have; the message lists what there is.
    """
    named, optioned = fields or (f"{kind}.name", f"{kind}.options")
    if spec.name not in shelf:
        raise unknown_name(kind, spec.name, tuple(shelf), named)
    entry = shelf[spec.name]
    return partial(entry.make, parse_options(entry.options, spec, kind, optioned))


def describe(shelf: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """What `show` tells of a shelf: names, summaries, options with their defaults, and those that have none."""
    return [{"name": name, "summary": entry.summary, **_options(entry)} for name, entry in shelf.items()]


def _options(entry: Entry) -> dict[str, Any]:
    fields = entry.options.model_fields.items()
    free = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    return {"options": free, "must_be_given": [name for name, field in fields if field.is_required()]}
