"""Labels and numbers: from cells to values, and from values to arrays."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from chainrule.core.task import FieldKind
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import unfit
from chainrule.data.table import Table, text_of
from chainrule.errors import Problem

Value = str | tuple[str, ...] | float
LARGEST = 3.4e38  # what float32, in which models are trained, can hold
_NUMBER = re.compile(r"[+-]?(\d++(\.\d*+)?+|\.\d++)([eE][+-]?\d++)?+", re.ASCII)


def read_targets(table: Table, field: str, column: str, kind: FieldKind) -> tuple[list[Value | None], list[Flaw]]:
    """One value a row (a label, a tuple of labels, or a number), None where there is a flaw.

    Labels are taken without the white space around them, which is noted.
    """
    cells: Sequence[Any]
    if kind == "classes" and _is_list(table.columns.column(column).type):
        cells = table.columns.column(column).to_pylist()
    else:
        cells = table.texts(column)
    parse: Callable[[Any], tuple[Value | None, _Found]] = {"class": _class, "classes": _classes}.get(kind, _number)
    if not _is_list(table.columns.column(column).type):
        parse = cache(parse)  # few different labels, many rows
    values: list[Value | None] = []
    flaws: list[Flaw] = []
    for index, cell in enumerate(cells):
        value, found = parse(cell)
        values.append(value)
        if isinstance(found, str):
            flaws.append(Flaw(found, int(table.rows[index])))
        elif found is not None:
            kind_of, expected, got, todo = found
            problem = Problem(expected, got, todo, table.where(index, field))
            flaws.append(Flaw(kind_of, int(table.rows[index]), problem))
    return values, flaws


def label_names(values: Iterable[Value]) -> tuple[str, ...]:
    """All labels, sorted; numbers by their size and before words ("2" before "10" before "a")."""
    names = {name for value in values for name in names_of(value)}
    return tuple(sorted(names, key=_order))


def encode_targets(values: Sequence[Value], kind: FieldKind, labels: Sequence[str]) -> np.ndarray:
    """Values as the array the task works with.

    Returns:
        class: int64 (n,) of indexes into `labels`; classes: float32 (n, labels) of 0 and 1; number: float64 (n,);
        reply: (n,) of texts.
    """
    if kind == "number":
        return np.array(values, dtype=np.float64)
    if kind == "reply":
        return np.array([str(value) for value in values], dtype=object)
    index = {name: position for position, name in enumerate(labels)}
    if kind == "class":
        return np.array([index[str(value)] for value in values], dtype=np.int64)
    matrix = np.zeros((len(values), len(labels)), dtype=np.float32)
    for row, value in enumerate(values):
        for name in value if isinstance(value, tuple) else ():
            matrix[row, index[name]] = 1
    return matrix


def unknown_labels(
    values: Sequence[Value], labels: Sequence[str], table: Table, field: str
) -> tuple[np.ndarray, list[Flaw]]:
    """Which rows have only known labels (a mask), and the flaws of the others."""
    known = set(labels)
    good = np.ones(len(values), dtype=bool)
    flaws = []
    some = ", ".join(labels[:8]) + (f", … ({len(labels)} in all)" if len(labels) > 8 else "")
    for index, value in enumerate(values):
        strange = [name for name in names_of(value) if name not in known]
        if strange:
            good[index] = False
            got = ", ".join(shorten(name) for name in strange)
            todo = "Correct the label, or add rows with it to train and train again."
            problem = Problem(f"a label that was in train: {some}", got, todo, table.where(index, field))
            flaws.append(Flaw("unknown-label", int(table.rows[index]), problem))
    return good, flaws


def names_of(value: Value) -> tuple[str, ...]:
    """The labels of a value: several, or the one it is."""
    return value if isinstance(value, tuple) else (str(value),)


def target_text(value: Value) -> str:
    """A value as the text that goes into row hashes."""
    if isinstance(value, tuple):
        return "|".join(value)
    return value if isinstance(value, str) else repr(value)


_Found = str | tuple[str, str, str, str] | None
_NO_LABEL = ("missing-label", "a label", "nothing", "Label or remove this row.")


def _class(cell: str | None) -> tuple[str | None, _Found]:
    name = (cell or "").strip()
    if not name:
        return None, _NO_LABEL
    if "\0" in name:
        return None, ("nul-byte", "a label", "NUL bytes in it", "Remove the NUL bytes.")
    return name, "label-white-space" if name != cell else None


def _classes(cell: Any) -> tuple[tuple[str, ...] | None, _Found]:
    if cell is None:
        return None, _NO_LABEL
    parts = cell
    if isinstance(cell, str):
        text = cell.strip()
        parts = text.split("|") if text else []
        if text.startswith("[") and text.endswith("]"):
            try:
                parts = json.loads(text)
            except (ValueError, RecursionError):
                expected = 'labels joined by "|" or a JSON list such as ["a", "b"]'
                return None, ("bad-label", expected, shorten(text), "Write the list as JSON, with double quotes.")
    if unfit(parts):
        got = f"{shorten(str(cell))}, which has half of a surrogate pair or is nested too deeply"
        return None, ("bad-label", "a list of labels", got, "Write the labels again from their source.")
    names = [text_of(part) for part in parts]
    plain = [(name or "").strip() for name in names]
    if not all(plain):
        return None, ("bad-label", "a name for each label", f"an empty one in {shorten(str(cell))}", "Remove it.")
    if any("\0" in name or "|" in name for name in plain):
        return None, ("bad-label", 'labels without "|" and NUL', shorten(str(cell)), "Rename the label.")
    if not plain:
        return (), "no-label"
    return tuple(sorted(set(plain))), "label-white-space" if plain != names else None


def _number(cell: str | None) -> tuple[float | None, _Found]:
    text = (cell or "").strip()
    if not text:
        return None, ("missing-label", "a number", "nothing", "Fill in or remove this row.")
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= LARGEST:
        todo = "Write a point, not a comma." if re.fullmatch(r"[+-]?\d+,\d+", text) else "Correct or remove this row."
        return None, ("not-a-number", "a finite number", shorten(text), todo)
    return value, None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _order(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if _NUMBER.fullmatch(name) else (1, 0.0, name)
