"""One split of rows in memory, on Arrow, that remembers where each row came from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chainrule.data.texts import Texts, stored, values_of
from chainrule.errors import Where


@dataclass(frozen=True)
class Places:
    """Where rows stand in the user's file.

    Attributes:
        file: the path as the user gave it, or "DataFrame", "Dataset", …
        rows: (n,) int64, 1-based data row numbers in the file (a header is not counted).
        lines: (n,) int64, 1-based number of each row's first line, where the format has lines.
    """

    file: str | None
    rows: np.ndarray
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> Places:
        """Those of the rows at `indices`, in that order."""
        return Places(self.file, self.rows[indices], None if self.lines is None else self.lines[indices])

    def where(self, index: int, field: str | None = None) -> Where:
        """The place of the row at position `index`."""
        line = None if self.lines is None else int(self.lines[index])
        return Where(file=self.file, row=int(self.rows[index]), line=line, field=field)


@dataclass(frozen=True)
class Table:
    """Rows with their places in the user's file.

    Attributes:
        columns: the cells. CSV and TSV have string columns only; other formats keep their types.
        file, rows, lines: as in `Places`.
    """

    file: str | None
    columns: pa.Table
    rows: np.ndarray
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """The column names in the file's order."""
        return list(self.columns.column_names)

    @property
    def places(self) -> Places:
        """Where the rows stand."""
        return Places(self.file, self.rows, self.lines)

    def take(self, indices: np.ndarray) -> Table:
        """The rows at `indices` (0-based positions in this table), in that order, copied."""
        places = self.places[indices]
        return Table(self.file, self.columns.take(pa.array(indices)), places.rows, places.lines)

    def texts(self, column: str) -> Texts:
        """A column as text: strings as they are, other values in one stable form, missing values as None."""
        cells = self.columns.column(column)
        is_text = pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)
        return Texts(cells) if is_text else Texts.of(map(text_of, values_of(cells)))

    def where(self, index: int, field: str | None = None) -> Where:
        """The place of the row at position `index`."""
        return self.places.where(index, field)


def concatenate(tables: Iterable[Table]) -> Table:
    """One table of pieces of the same file, in order, the next piece being asked for when the one before is stored.

    A column that a piece lacks is missing in its rows; one whose type changes between pieces becomes text.
    """
    places: list[Places] = []

    def columns() -> Iterator[pa.Table]:
        for table in tables:
            places.append(table.places)
            yield table.columns

    pieces = stored(columns())
    if any(piece.schema != pieces[0].schema for piece in pieces):
        types = _common_types(pieces)
        pieces = stored(_cast(piece, types, len(part)) for piece, part in zip(pieces, places, strict=True))
    lines = [part.lines for part in places if part.lines is not None]
    rows = np.concatenate([part.rows for part in places])
    whole = pa.concat_tables(pieces)
    return Table(places[0].file, whole, rows, np.concatenate(lines) if len(lines) == len(places) else None)


def _common_types(pieces: Sequence[pa.Table]) -> pa.Schema:
    """All columns in order of first appearance, with the type they have in every piece that has values, or text."""
    found: dict[str, set[pa.DataType]] = {}
    for piece in pieces:
        for field in piece.schema:
            found.setdefault(field.name, set()).update([] if pa.types.is_null(field.type) else [field.type])
    kinds = {
        name: types.pop() if len(types) == 1 else pa.string() if types else pa.null() for name, types in found.items()
    }
    return pa.schema(list(kinds.items()))


def _cast(piece: pa.Table, types: pa.Schema, rows: int) -> pa.Table:
    arrays = []
    for field in types:
        cells = piece.column(field.name) if field.name in piece.column_names else pa.nulls(rows)
        same = cells.type == field.type
        arrays.append(cells if same else pa.array(map(text_of, cells.to_pylist()), field.type))
    return pa.table(arrays, schema=types)


def text_of(value: Any) -> str | None:
    """One value as stable text: 1 -> "1", 1.0 -> "1", true -> "true", lists and objects as JSON, NaN -> None.

    Whole numbers lose their ".0" because a column of whole numbers with one gap becomes floating point in a frame.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def array_of(values: Sequence[Any]) -> pa.Array:
    """Values as an Arrow array; a column of mixed types becomes text in the stable form of `text_of`."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.array([text_of(value) for value in values], pa.string())
