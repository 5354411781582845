"""Bytes to text: UTF-8 or a clear word about what else it may be."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from chainrule.errors import DataError, Problem, Where

_MARKS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_HIGH = re.compile(rb"[\x80-\xff]+")


def decode_lines(file: BinaryIO, shown: str) -> Iterator[tuple[str, bytes | None]]:
    r"""Yield each line with its ending (\n, \r\n or \r) and, where it is not UTF-8, its raw bytes.

    Undecodable bytes are kept as lone surrogates ("surrogateescape"), so that the rest of the row can be read.

    Raises:
        DataError: the file is UTF-16 or UTF-32.
    """
    refuse_wide(file.peek(4096) if hasattr(file, "peek") else b"", shown)
    first = True
    for raw in file:
        line = raw
        if first:
            line, first = raw.removeprefix(codecs.BOM_UTF8), False
        for piece in line.splitlines(keepends=True) if b"\r" in line[:-2] else (line,):
            try:
                yield piece.decode("utf-8"), None
            except UnicodeDecodeError:
                yield piece.decode("utf-8", "surrogateescape"), piece


def refuse_wide(start: bytes, shown: str) -> None:
    """Raise DataError if the first bytes of a file say that it is UTF-16 or UTF-32."""
    name = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if name is None and len(start) >= 8:
        even, odd = start[0::2].count(0) / len(start[0::2]), start[1::2].count(0) / len(start[1::2])
        if min(even, odd) < 0.05 and max(even, odd) > 0.4:
            name = "UTF-16"
    if name is not None:
        problem = Problem(
            where=Where(file=shown),
            expected="UTF-8 text",
            got=f"{name} text",
            todo=f"Save the file as UTF-8, for example: iconv -f {name} -t UTF-8 OLD > NEW",
        )
        raise DataError(f"{shown} is not UTF-8 text.", [problem])


def encoding_problem(where: Where, raw: bytes) -> Problem:
    """The problem of bytes that are not UTF-8, with a guess at what they are."""
    try:
        raw.decode("utf-8")
        start, bad = 0, raw[:1]
    except UnicodeDecodeError as error:
        start, bad = error.start, raw[error.start : error.start + 4]
    name = guess(raw)
    return Problem(
        where=where,
        expected="UTF-8 text",
        got=f"the bytes {bad.hex(' ')} at position {start + 1}, which are not UTF-8 (it looks like {name})",
        todo=f"Save the file as UTF-8, for example: iconv -f {name} -t UTF-8 OLD > NEW",
    )


def guess(raw: bytes) -> str:
    """A guess at the encoding of bytes that are not UTF-8: Chinese text has its high bytes in pairs, Latin has not."""
    runs = _HIGH.findall(raw)
    paired = sum(len(run) for run in runs if len(run) % 2 == 0)
    if 2 * paired > sum(map(len, runs)):
        try:
            raw.decode("gb18030")
            return "GB18030"
        except UnicodeDecodeError:
            pass
    return "WINDOWS-1252"
