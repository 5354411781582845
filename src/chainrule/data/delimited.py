"""CSV and TSV, read row by row with the place of every row, so that each broken one can be named.

Cells are text and stay text: "NA", "nan" and "007" are never converted. Quotes follow RFC 4180 strictly. When a quote
is broken only the line it stands on is given up, and reading goes on with the next line.
"""

from __future__ import annotations

import csv
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from chainrule.data.encodings import decode_lines, encoding_problem
from chainrule.data.flaws import Flaw, refuse_names, shorten
from chainrule.data.table import Table
from chainrule.errors import DataError, Problem, Where

MAX_CELL = 2**28  # characters; an unclosed quote in an endless file must not fill the memory

_limit_lock = threading.Lock()
_SURROGATE = re.compile("[\ud800-\udfff]")

Record = tuple[int, list[str] | None, str]


def read_delimited(path: Path, shown: str, delimiter: str, chunk_rows: int) -> Iterator[tuple[Table, list[Flaw]]]:
    """Yield tables of up to `chunk_rows` good rows, each with the flaws met on the way.

    Raises:
        DataError: the file has no usable header.
    """
    with path.open("rb") as file:
        lines = _Lines(file, shown)
        records = _records(lines, delimiter, literal=delimiter == "\t")
        header, flaws = _header(records, lines, shown)
        row = 0
        while True:
            with _large_cells():
                batch = list(islice(records, chunk_rows))
            if not batch:
                break
            table, found, row = _table(batch, header, lines, shown, row)
            yield table, flaws + found
            flaws = []
        if row == 0:
            yield _table([], header, lines, shown, 0)[0], flaws


class _Lines:
    """Lines of a file that can be handed out a second time; `number` is that of the last line handed out."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self._source = decode_lines(file, shown)
        self._ahead: deque[tuple[str, bytes | None]] = deque()
        self.number = 0
        self.taken: list[tuple[str, bytes | None]] = []
        self.damaged: dict[int, bytes] = {}

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        pair = self._ahead.popleft() if self._ahead else next(self._source)
        self.number += 1
        self.taken.append(pair)
        if pair[1] is not None:
            self.damaged[self.number] = pair[1]
        return pair[0]

    def give_back(self) -> None:
        """Give back all lines of the current record but its first."""
        self._ahead.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def _records(lines: _Lines, delimiter: str, *, literal: bool) -> Iterator[Record]:
    """Yield (first line, cells, remark); cells is None where the quotes are broken and `literal` is off."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    width = 0
    while True:
        lines.taken.clear()
        first = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text, last = lines.taken[0][0], lines.number
            lines.give_back()
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            if literal:
                yield first, text.rstrip("\r\n").split(delimiter), "literal-quotes"
            else:
                yield first, None, f"{last}:{error}"
            continue
        width = width or len(cells)
        remark = ""
        if (
            len(lines.taken) > 2
            and width > 1
            and _look_like_rows([text for text, _ in lines.taken[1:-1]], delimiter, width)
        ):
            remark = "swallowed-rows"
        yield first, cells, remark


def _look_like_rows(texts: Sequence[str], delimiter: str, width: int) -> bool:
    try:
        return all(len(cells) == width for cells in csv.reader(texts, delimiter=delimiter, strict=True))
    except csv.Error:
        return False


def _header(records: Iterator[Record], lines: _Lines, shown: str) -> tuple[list[str], list[Flaw]]:
    """The column names, and notes. Blank lines before the header are passed over."""
    flaws: list[Flaw] = []
    with _large_cells():
        for line, cells, remark in records:
            if cells == []:
                flaws.append(Flaw("blank-line", line))
                continue
            if cells is None:
                raise _bad_header(shown, line, "a line of column names", f"a broken quote ({remark.partition(':')[2]})")
            if line in lines.damaged:
                raise DataError(
                    f"The header of {shown} is not UTF-8 text.",
                    [encoding_problem(Where(file=shown, line=line), lines.damaged[line])],
                )
            return _named(cells, shown, line), flaws
    raise DataError(
        f"{shown} is empty.",
        [
            Problem(
                where=Where(file=shown),
                expected="a line of column names and rows below it",
                got="an empty file",
                todo="Check that the file was written completely.",
            )
        ],
    )


def _named(cells: list[str], shown: str, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise _bad_header(shown, line, "column names in the first line", "only empty names")
    if any("\0" in name for name in names):
        raise _bad_header(shown, line, "column names in the first line", "NUL bytes")
    # an unnamed first column is what a frame's index becomes
    names = [name or f"unnamed_{position}" for position, name in enumerate(names, start=1)]
    refuse_names(names, Where(file=shown, line=line), "Correct the first line of the file.")
    return names


def _bad_header(shown: str, line: int, expected: str, got: str) -> DataError:
    problem = Problem(
        where=Where(file=shown, line=line), expected=expected, got=got, todo="Correct the first line of the file."
    )
    return DataError(f"The header of {shown} cannot be used.", [problem])


def _table(
    batch: Sequence[Record], header: list[str], lines: _Lines, shown: str, row: int
) -> tuple[Table, list[Flaw], int]:
    good: list[list[str]] = []
    rows: list[int] = []
    firsts: list[int] = []
    flaws: list[Flaw] = []
    width = len(header)
    damaged = bool(lines.damaged)
    for line, cells, remark in batch:
        if cells == []:
            flaws.append(Flaw("blank-line", line))
            continue
        row += 1
        flaw = None
        if cells is None:
            flaw = _broken_quote(Where(file=shown, row=row, line=line), remark)
        elif len(cells) != width:
            flaw = _ragged(Where(file=shown, row=row, line=line), header, cells)
        elif damaged and (column := _damaged_column(cells)) is not None:
            where = Where(file=shown, row=row, line=line, field=header[column])
            raw = cells[column].encode("utf-8", "surrogateescape")
            flaw = Flaw("wrong-encoding", row, encoding_problem(where, raw))
        if flaw is not None:
            flaws.append(flaw)
            continue
        if remark:
            flaws.append(Flaw(remark, row))
        good.append(cells or [])
        rows.append(row)
        firsts.append(line)
    columns = list(zip(*good, strict=True)) if good else [()] * width
    arrays = [pa.array(column, pa.string()) for column in columns]
    table = Table(shown, pa.table(arrays, names=header), np.array(rows, np.int64), np.array(firsts, np.int64))
    return table, flaws, row


def _damaged_column(cells: list[str]) -> int | None:
    return next((index for index, cell in enumerate(cells) if _SURROGATE.search(cell)), None)


def _broken_quote(where: Where, remark: str) -> Flaw:
    last, _, reason = remark.partition(":")
    if "unexpected end" in reason:
        got = f"none up to the end of the file at line {last}"
    elif "field larger" in reason:
        got = f"none in {MAX_CELL:,} characters"
    else:
        got = f"text straight after a closing quote in line {last}"
    problem = Problem(
        where=where,
        expected="a closing quote for the quoted cell that starts here, followed by a separator or a new line",
        got=got,
        todo='Write a quote inside a quoted cell twice (""), or remove the lone quote.',
    )
    return Flaw("broken-quote", where.row or 0, problem)


def _ragged(where: Where, header: list[str], cells: list[str]) -> Flaw:
    names = ", ".join(header[:6]) + (", …" if len(header) > 6 else "")
    problem = Problem(
        where=where,
        expected=f"{len(header)} cell{'' if len(header) == 1 else 's'} as in the header ({names})",
        got=f"{len(cells)}: {shorten(' | '.join(cells))}",
        todo="Put quotes around cells that hold the separator, or add the missing cells.",
    )
    return Flaw("ragged-row", where.row or 0, problem)


@contextmanager
def _large_cells() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a cell, for the time of one batch: the limit is global."""
    with _limit_lock:
        before = csv.field_size_limit(MAX_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)
