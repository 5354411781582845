"""Labels and numbers: from cells to values, and from values to arrays."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from chainrule.core.lists import Lists
from chainrule.core.spans import Answers, Spans
from chainrule.core.task import FieldKind
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import unfit
from chainrule.data.table import Places, Table, text_of
from chainrule.data.texts import Texts, values_of
from chainrule.errors import Problem

LARGEST = 3.4e38  # what float32, in which models are trained, can hold
_NUMBER = re.compile(r"[+-]?(\d++(\.\d*+)?+|\.\d++)([eE][+-]?\d++)?+", re.ASCII)
_REMEMBERED = 1 << 14  # different cells: there are few different labels and many rows


@dataclass(frozen=True)
class Labels:
    """The labels of rows; each different set of labels is held once.

    Attributes:
        sets: the sets, each a tuple of sorted names; one name each where a row has one label.
        codes: (n,) int64 positions in `sets`; -1 where a row has no value.
    """

    sets: tuple[tuple[str, ...], ...]
    codes: np.ndarray

    @classmethod
    def of(cls, values: Iterable[tuple[str, ...] | None]) -> Labels:
        """The labels of each row, None where it has no value."""
        sets: dict[tuple[str, ...], int] = {}
        codes = (-1 if names is None else sets.setdefault(names, len(sets)) for names in values)
        found = np.fromiter(codes, np.int64)
        return cls(tuple(sets), found)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, indices: np.ndarray) -> Labels:
        """The rows at `indices`, in that order, each of which has a value."""
        used, codes = np.unique(self.codes[indices], return_inverse=True)
        return Labels(tuple(self.sets[code] for code in used), codes.astype(np.int64))

    def count(self) -> Counter[str]:
        """How many rows have each label."""
        counts: Counter[str] = Counter()
        for names, rows in zip(self.sets, np.bincount(self.codes, minlength=len(self.sets)).tolist(), strict=True):
            counts.update(dict.fromkeys(names, rows))
        return counts


@dataclass(frozen=True)
class Entities:
    """The entities of rows.

    Attributes:
        names: the types; the kind of a span is a position among them.
        spans: of n rows.
    """

    names: tuple[str, ...]
    spans: Spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, indices: np.ndarray) -> Entities:
        """The rows at `indices`, in that order."""
        return Entities(self.names, self.spans[indices])

    def labels(self) -> Labels:
        """The types that each row has."""
        found: list[set[str]] = [set() for _ in range(len(self))]
        for row, kind in zip(self.spans.rows.tolist(), self.spans.bounds[:, 2].tolist(), strict=True):
            found[row].add(self.names[kind])
        return Labels.of(tuple(sorted(names)) for names in found)

    def count(self) -> Counter[str]:
        """How many entities there are of each type."""
        counts = np.bincount(self.spans.bounds[:, 2], minlength=len(self.names)).tolist()
        return Counter({name: count for name, count in zip(self.names, counts, strict=True) if count})


# labels, entities, answers, lists, numbers (n,) float64, those of a row's texts (n, s) int64, or replies
Values = Labels | Entities | Answers | Lists | np.ndarray | Texts


def labels_of(values: Values) -> Labels | None:
    """The names out of a fixed set that each row has; None where targets are no names."""
    if isinstance(values, Entities):
        return values.labels()
    return values if isinstance(values, Labels) else None


def read_targets(table: Table, field: str, column: str, kind: FieldKind) -> tuple[Labels | np.ndarray, list[Flaw]]:
    """The labels or the number of each row, and what is wrong with them; a flawed row has code -1 or NaN.

    Labels are taken without the white space around them, which is noted.
    """
    cells = table.columns.column(column)
    parse: Callable[[Any], tuple[Any, _Found]] = {"class": _class, "classes": _classes}.get(kind, _number)
    given: Iterable[Any]
    if kind == "classes" and _is_list(cells.type):
        given = values_of(cells)
    else:
        given, parse = table.texts(column), lru_cache(_REMEMBERED)(parse)
    flaws: list[Flaw] = []

    def values() -> Iterator[Any]:
        for index, cell in enumerate(given):
            value, found = parse(cell)
            if isinstance(found, str):
                flaws.append(Flaw(found, int(table.rows[index])))
            elif found is not None:
                kind_of, expected, got, todo = found
                problem = Problem(expected, got, todo, table.where(index, field))
                flaws.append(Flaw(kind_of, int(table.rows[index]), problem))
            yield value

    return (np.fromiter(values(), np.float64) if kind == "number" else Labels.of(values())), flaws


def label_names(labels: Labels) -> tuple[str, ...]:
    """All labels, sorted; numbers by their size and before words ("2" before "10" before "a")."""
    return tuple(sorted({name for names in labels.sets for name in names}, key=_order))


def encode_targets(
    values: Values, kind: FieldKind, labels: Sequence[str]
) -> np.ndarray | Texts | Spans | Answers | Lists:
    """Values as what the task works with.

    Returns:
        class: int64 (n,) of indexes into `labels`; classes: float32 (n, labels) of 0 and 1; number: float64 (n,);
        spans: `Spans` of n rows whose kinds are indexes into `labels`; answers and relevances: as they are;
        reply: (n,) of texts;
        relation: int64 (n,), the same for the same label whether it is among `labels` or not, or as they are.
    """
    index = {name: position for position, name in enumerate(labels)}
    if isinstance(values, Entities):
        return _with_kinds(values.spans, [index.get(name, -1) for name in values.names])
    if not isinstance(values, Labels):
        return values
    if kind == "relation":
        numbers = [blake2b(name.encode(), digest_size=8).digest() for (name,) in values.sets]
        return np.take(np.frombuffer(b"".join(numbers), "<i8").astype(np.int64), values.codes)
    if kind == "class":
        classes = np.array([index[name] for (name,) in values.sets], dtype=np.int64)
        return np.take(classes, values.codes)
    matrix = np.zeros((len(values.sets), len(labels)), dtype=np.float32)
    for row, names in enumerate(values.sets):
        matrix[row, [index[name] for name in names]] = 1
    return np.take(matrix, values.codes, axis=0)


def decode_targets(targets: Any, kind: FieldKind, labels: Sequence[str]) -> Values:
    """The opposite of `encode_targets`, but for replies."""
    if isinstance(targets, Spans):
        return Entities(tuple(labels), targets)
    if isinstance(targets, Answers | Lists):
        return targets
    if kind == "number":
        return np.asarray(targets)
    chosen = targets[:, None].tolist() if kind == "class" else [np.flatnonzero(row).tolist() for row in targets]
    return Labels.of(tuple(sorted(labels[index] for index in indices)) for indices in chosen)


def _with_kinds(spans: Spans, kinds: Sequence[int]) -> Spans:
    bounds = spans.bounds.copy()
    bounds[:, 2] = np.array([*kinds, 0], np.int32)[bounds[:, 2]]
    return Spans(spans.offsets, bounds, spans.scores)


def unknown_labels(values: Labels, labels: Sequence[str], places: Places, field: str) -> tuple[np.ndarray, list[Flaw]]:
    """Which rows have only known labels (a mask), and the flaws of the others."""
    known = set(labels)
    strange = [[name for name in names if name not in known] for names in values.sets]
    good = np.array([not names for names in strange], dtype=bool)[values.codes]
    flaws = []
    some = ", ".join(labels[:8]) + (f", … ({len(labels)} in all)" if len(labels) > 8 else "")
    for row in np.flatnonzero(~good).tolist():
        got = ", ".join(shorten(name) for name in strange[values.codes[row]])
        todo = "Correct the label, or add rows with it to train and train again."
        problem = Problem(f"a label that was in train: {some}", got, todo, places.where(row, field))
        flaws.append(Flaw("unknown-label", int(places.rows[row]), problem))
    return good, flaws


def target_texts(values: Values) -> Iterator[str]:
    """Each value as the text that goes into row hashes."""
    if isinstance(values, Labels):
        joined = ["|".join(names) for names in values.sets]
        return (joined[code] for code in values.codes)
    if isinstance(values, Entities):
        named = ([(start, end, values.names[kind]) for start, end, kind in row] for row in values.spans.each())
        return (json.dumps(sorted(row), ensure_ascii=False) for row in named)
    if isinstance(values, Answers):
        return (json.dumps(sorted(row)) for row in values.spans.each())
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return repeat("", len(values))  # they follow from the inputs
    if isinstance(values, Lists):
        return (json.dumps(row.tolist()) for row in values.each())
    return (repr(float(value)) for value in values) if isinstance(values, np.ndarray) else iter(values)


_Found = str | tuple[str, str, str, str] | None
_NO_LABEL = ("missing-label", "a label", "nothing", "Label or remove this row.")


def _class(cell: str | None) -> tuple[tuple[str] | None, _Found]:
    name = (cell or "").strip()
    if not name:
        return None, _NO_LABEL
    if "\0" in name:
        return None, ("nul-byte", "a label", "NUL bytes in it", "Remove the NUL bytes.")
    return (name,), "label-white-space" if name != cell else None


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


def _number(cell: str | None) -> tuple[float, _Found]:
    text = (cell or "").strip()
    if not text:
        return math.nan, ("missing-label", "a number", "nothing", "Fill in or remove this row.")
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= LARGEST:
        todo = "Write a point, not a comma." if re.fullmatch(r"[+-]?\d+,\d+", text) else "Correct or remove this row."
        return math.nan, ("not-a-number", "a finite number", shorten(text), todo)
    return value, None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _order(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if _NUMBER.fullmatch(name) else (1, 0.0, name)
