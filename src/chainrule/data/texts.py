"""Columns of texts on Arrow: of any size, since large ones lie in a memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, overload

import numpy as np
import pyarrow as pa

from chainrule.system.spill import Spill

CHUNK_ROWS = 4096  # that become Python objects at once


@dataclass(frozen=True, eq=False)
class Texts(Sequence[Any]):
    """A column of texts; None where one is missing.

    Rows are chosen by their places, so that choosing does not copy texts.

    Attributes:
        cells: Arrow strings.
        places: (n,) int64 positions in `cells`; None for all of them in order.
    """

    cells: pa.ChunkedArray
    places: np.ndarray | None = None

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> Texts:
        """Texts from anywhere, taken a chunk at a time."""
        return text_columns(zip(texts, strict=True), ["text"])["text"]

    def __len__(self) -> int:
        return len(self.cells if self.places is None else self.places)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), CHUNK_ROWS):
            yield from self[start : start + CHUNK_ROWS].to_list()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Texts: ...
    def __getitem__(self, index: int | slice | np.ndarray) -> Any:
        """One text, or the texts of a slice or of an array of positions."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if self.places is None and step == 1:
                return Texts(self.cells.slice(start, max(stop - start, 0)))
            index = np.arange(start, stop, step)
        if isinstance(index, np.ndarray):
            return Texts(self.cells, index if self.places is None else self.places[index])
        return self.cells[int(index if self.places is None else self.places[index])].as_py()

    def to_list(self) -> list[Any]:
        """All texts at once, as Python objects."""
        if self.places is None or not len(self.places):
            return list(self.cells.to_pylist()) if self.places is None else []
        first, last = int(self.places.min()), int(self.places.max())
        near = self.cells.slice(first, last - first + 1)  # taking from many chunks would join them all first
        return list(near.take(pa.array(self.places - first)).to_pylist())


def text_columns(rows: Iterable[tuple[str | None, ...]], names: Sequence[str]) -> dict[str, Texts]:
    """Rows of texts as columns; only a chunk of the rows is in Python's memory at a time."""
    left = iter(rows)

    def tables() -> Iterator[pa.Table]:
        while chunk := list(islice(left, CHUNK_ROWS)):
            yield pa.table([pa.array(column, pa.string()) for column in zip(*chunk, strict=True)], names=list(names))

    done = stored(tables())
    columns = {name: [chunk for table in done for chunk in table.column(name).chunks] for name in names}
    return {name: Texts(pa.chunked_array(chunks, pa.string())) for name, chunks in columns.items()}


def values_of(cells: pa.ChunkedArray) -> Iterator[Any]:
    """The cells of a column as Python objects, a chunk at a time."""
    for start in range(0, len(cells), CHUNK_ROWS):
        yield from cells.slice(start, CHUNK_ROWS).to_pylist()


def stored(tables: Iterable[pa.Table]) -> list[pa.Table]:
    """The same tables, together in memory, or in a memory-mapped file if they are large."""
    ends = [0]
    with Spill() as spill:
        for table in tables:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            written = sink.getvalue()
            spill.write(memoryview(written))
            ends.append(ends[-1] + written.size)
        whole = pa.py_buffer(spill.read())
    return [pa.ipc.open_stream(whole.slice(start, end - start)).read_all() for start, end in pairwise(ends)]
