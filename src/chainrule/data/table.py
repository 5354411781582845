"""One split of rows in memory, on Arrow, that remembers where each row came from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chainrule.errors import Where


@dataclass(frozen=True)
class Table:
    """Rows with their places in the user's file.

    Attributes:
        file: the path as the user gave it, or "DataFrame", "Dataset", …
        columns: the cells. CSV and TSV have string columns only; other formats keep their types.
        rows: (n,) int64, 1-based data row numbers in the file (a header is not counted).
        lines: (n,) int64, 1-based number of each row's first line, where the format has lines.
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

    def take(self, indices: np.ndarray) -> Table:
        """The rows at `indices` (0-based positions in this table), in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        lines = None if self.lines is None else self.lines[chosen]
        return Table(self.file, self.columns.take(pa.array(chosen)), self.rows[chosen], lines)

    def texts(self, column: str) -> list[str | None]:
        """A column as text: strings as they are, other values in one stable form, missing values as None."""
        cells = self.columns.column(column)
        if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
            return list(cells.to_pylist())
        return [text_of(value) for value in cells.to_pylist()]

    def where(self, index: int, field: str | None = None) -> Where:
        """The place of the row at position `index`."""
        line = None if self.lines is None else int(self.lines[index])
        return Where(file=self.file, row=int(self.rows[index]), line=line, field=field)


def concatenate(tables: Sequence[Table]) -> Table:
    """One table of several pieces of the same file, in order; missing columns are filled with missing values."""
    if len(tables) == 1:
        return tables[0]
    columns = pa.concat_tables([table.columns for table in tables], promote_options="permissive")
    lines = [table.lines for table in tables if table.lines is not None]
    rows = np.concatenate([table.rows for table in tables])
    return Table(tables[0].file, columns, rows, np.concatenate(lines) if len(lines) == len(tables) else None)


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
