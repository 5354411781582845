"""The recipe as a file that a person can read: every key, with the reasons beside those that were recommended."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from chainrule.core.plan import Reason
from chainrule.core.recipe import Recipe

WIDTH = 110


def written_recipe(recipe: Recipe, reasons: Sequence[Reason], top: Sequence[str]) -> str:
    """YAML with comments.

    Args:
        top: lines for the beginning.
    """
    told: dict[str, list[Reason]] = {}
    for reason in reasons:
        told.setdefault(reason.key, []).append(reason)
    lines = [comment for line in top for comment in _comment(line, "")]
    for section, value in recipe.model_dump(mode="json").items():
        lines += ["", *_above(told, section, "")]
        if section in ("choice",) or not isinstance(value, dict) or not value:
            lines += _plain({section: value}, "")
            continue
        lines.append(f"{section}:")
        for key, inner in value.items():
            lines += _above(told, f"{section}.{key}", "  ")
            below = [name for name in told if name.startswith(f"{section}.{key}.")]
            lines += [comment for name in below for comment in _above(told, name, "  ")]
            lines += _plain({key: inner}, "  ")
    return "\n".join(lines) + "\n"


def _above(told: dict[str, list[Reason]], key: str, indent: str) -> list[str]:
    return [comment for reason in told.get(key, []) for comment in _comment(reason.line, indent)]


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH)]


def _plain(value: dict[str, Any], indent: str) -> list[str]:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=4096)
    return [indent + line for line in text.splitlines()]
