"""Rows that are in columns already: Parquet files, pandas and other frames, Arrow tables, `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chainrule.data.flaws import Flaw, refuse_names
from chainrule.data.jsontext import has_surrogate, surrogate_problem
from chainrule.data.table import Table, array_of
from chainrule.errors import DataError, Problem, Where

Chunk = tuple[Table, list[Flaw]]


def read_parquet(path: Path, shown: str, chunk_rows: int) -> Iterator[Chunk]:
    """Yield tables of up to `chunk_rows` rows.

    Raises:
        DataError: the file is not Parquet, or is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            refuse_names(file.schema_arrow.names, Where(file=shown), "Rename the columns.")
            row = 0
            for batch in file.iter_batches(batch_size=chunk_rows):
                columns = plain(pa.Table.from_batches([batch]))
                _refuse_unreadable(columns, shown, row + 1)
                yield Table(shown, columns, np.arange(row + 1, row + 1 + len(batch))), []
                row += len(batch)
            if row == 0:
                yield Table(shown, plain(file.schema_arrow.empty_table()), np.arange(0)), []
    except (pa.ArrowException, OSError, ValueError) as error:  # a name of a column may be no text
        reason = str(error).partition("\n")[0][:200]
        problem = Problem(
            where=Where(file=shown),
            expected="a Parquet file",
            got=f"a file that cannot be read as one ({reason})",
            todo="Write it again, or give it the ending of what it is (.csv, .jsonl, …).",
        )
        raise DataError(f"{shown} cannot be read as Parquet.", [problem]) from None


def is_frame(source: Any) -> bool:
    """Whether `source` is an object with columns that `read_frame` understands. Nothing is imported to find out."""
    return isinstance(source, pa.Table) or _is_dataset(source) or _is_pandas(source) or hasattr(source, "to_arrow")


def read_frame(source: Any) -> Chunk:
    """A pandas or other frame, an Arrow table or a `datasets.Dataset` as a Table; rows are counted from 1.

    Raises:
        DataError: a streaming dataset, or values that Arrow cannot hold.
    """
    name = type(source).__name__
    try:
        if _is_pandas(source):
            return _pandas(source)
        if _is_dataset(source):
            columns, name = _dataset(source), "Dataset"
        else:
            columns = source if isinstance(source, pa.Table) else source.to_arrow()
        columns = plain(columns)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError) as error:
        todo = "Turn the columns into texts, numbers or lists of them."
        reason = str(error).partition("\n")[0][:200]
        problem = Problem("columns that Arrow can hold", reason, todo, Where(file=name))
        raise DataError(f"The {name} cannot be read.", [problem]) from error
    _refuse_unreadable(columns, name, 1)
    return Table(name, columns, np.arange(1, columns.num_rows + 1)), []


def _refuse_unreadable(columns: pa.Table, shown: str, first: int) -> None:
    """Raise DataError for cells without a value of their type: bytes that are no UTF-8, days outside the calendar.

    Args:
        first: the row number of the first row.
    """
    for field, column in zip(columns.schema, columns.columns, strict=True):
        try:
            column.validate(full=True)
            if _in_time(field.type):
                column.to_pylist()
        except (pa.ArrowException, OverflowError, ValueError):
            row, reason = next((row, reason) for row, reason in _reasons(column) if reason)
            todo = "Write the data again from its source, or leave the column out."
            where = Where(file=shown, row=first + row, field=field.name)
            problem = Problem(f"a value of the type {field.type}", reason[:200], todo, where)
            raise DataError(f"{shown} has cells that cannot be read.", [problem]) from None


def _reasons(column: pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """Why each cell cannot be read; "" where it can."""
    for row, cell in enumerate(column):
        try:
            cell.as_py()
            yield row, ""
        except (pa.ArrowException, OverflowError, ValueError) as error:
            yield row, str(error).partition("\n")[0]
    yield 0, "damaged data"


def _in_time(kind: pa.DataType) -> bool:
    """Whether a type is of dates or times, or holds them inside."""
    return bool(pa.types.is_temporal(kind)) or any(_in_time(kind.field(i).type) for i in range(kind.num_fields))


def plain(columns: pa.Table) -> pa.Table:
    """Unfold dictionary-encoded columns and views into ordinary ones."""
    for index, field in enumerate(columns.schema):
        kind = field.type
        target = kind.value_type if pa.types.is_dictionary(kind) else kind
        if target in (pa.string_view(), pa.large_string()):
            target = pa.string()
        if target != kind:
            columns = columns.set_column(index, field.name, columns.column(index).cast(target))
    return columns


def _is_pandas(source: Any) -> bool:
    return hasattr(source, "iloc") and hasattr(source, "columns")


def _is_dataset(source: Any) -> bool:
    return hasattr(source, "features") and hasattr(source, "with_format")


def _dataset(source: Any) -> pa.Table:
    if not hasattr(source, "__len__"):
        problem = Problem(
            where=Where(file="Dataset"),
            expected="a dataset with a known number of rows",
            got="a streaming dataset",
            todo="Load it without streaming=True.",
        )
        raise DataError("A streaming dataset cannot be read.", [problem])
    columns = source.with_format("arrow")[:]
    for index, name in enumerate(columns.column_names):
        feature = source.features[name]
        classes = getattr(feature, "names", None)
        inner = getattr(getattr(feature, "feature", None), "names", None)
        if classes is not None and hasattr(feature, "int2str"):
            values: list[Any] = [_class_name(classes, value) for value in columns.column(index).to_pylist()]
        elif inner is not None:
            cells = columns.column(index).to_pylist()
            values = [None if cell is None else [_class_name(inner, value) for value in cell] for cell in cells]
        else:
            continue
        columns = columns.set_column(index, name, array_of(values))
    return columns


def _class_name(names: list[str], value: Any) -> str | None:
    """-1 is what `datasets` writes where a label is withheld."""
    return None if value is None or value < 0 else names[value]


def _pandas(source: Any) -> Chunk:
    flaws: dict[int, Flaw] = {}
    arrays = []
    names = [str(name) for name in source.columns]
    for position, name in enumerate(names):
        series = source.iloc[:, position]
        try:
            arrays.append(pa.Array.from_pandas(series))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            values = series.tolist()
            for index, value in enumerate(values):
                if has_surrogate(value):
                    where = Where(file="DataFrame", row=index + 1, field=name)
                    flaws[index] = Flaw("wrong-encoding", index + 1, surrogate_problem(where))
                    values[index] = None
            arrays.append(array_of(values))
    chunked = [pa.chunked_array([array]) if isinstance(array, pa.Array) else array for array in arrays]
    table = Table("DataFrame", plain(pa.table(chunked, names=names)), np.arange(1, len(source) + 1))
    if flaws:
        table = table.take(np.array([index for index in range(len(source)) if index not in flaws], np.int64))
    return table, list(flaws.values())
