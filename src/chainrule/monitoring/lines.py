"""Rows of a file or a pipe, as they come: lines of JSON, of CSV or TSV with a header, or of plain text."""

from __future__ import annotations

import csv
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any, Literal, TextIO

from chainrule.errors import DataError, Problem

AT_ONCE = 256  # rows that are handed on together where so many are there
LONGEST = 4 * 2**20  # characters of a line
IDLE = 1.0  # seconds without a line, after which nothing is handed on, so that time can be seen to pass

Format = Literal["auto", "jsonl", "csv", "tsv", "lines"]
Line = tuple[int, dict[str, Any] | str | DataError]  # its number, and the row, the text, or why it is neither


def read_lines(file: TextIO, form: Format) -> Iterator[list[Line]]:
    """Rows in the pieces they come in; an empty piece where none came for a second.

    Args:
        form: "auto" takes lines that begin with a brace for JSON, and others for texts.
    """
    waiting: queue.Queue[Line | BaseException | None] = queue.Queue(maxsize=4 * AT_ONCE)

    def read() -> None:
        try:
            for line in _parsed(file, form):
                waiting.put(line)
            waiting.put(None)
        except BaseException as error:  # handed over, and raised where rows are awaited
            waiting.put(error)

    threading.Thread(target=read, name="lines", daemon=True).start()
    ended = False
    while not ended:
        some: list[Line] = []
        while len(some) < AT_ONCE:
            try:
                found = waiting.get(timeout=IDLE) if not some else waiting.get_nowait()
            except queue.Empty:
                break
            if isinstance(found, BaseException):
                raise found
            if found is None:
                ended = True
                break
            some.append(found)
        if some or not ended:
            yield some


def _parsed(file: TextIO, form: Format) -> Iterator[Line]:
    numbered = _numbered(file)
    if form in ("csv", "tsv"):
        yield from _delimited(numbered, "," if form == "csv" else "\t")
        return
    for number, line in numbered:
        if isinstance(line, DataError):
            yield number, line
        elif line.strip():
            is_json = form == "jsonl" or (form == "auto" and line.lstrip().startswith("{"))
            yield number, _json(line) if is_json else line.strip()


def _numbered(file: TextIO) -> Iterator[tuple[int, str | DataError]]:
    number, broken = 1, False
    while line := file.readline(LONGEST):
        whole = line.endswith("\n") or len(line) < LONGEST
        if not broken:
            problem = Problem(f"at most {LONGEST:,} characters", "more", "Shorten this line.")
            yield number, line if whole else DataError("A line is too long.", [problem])
        broken = not whole
        number += whole


def _json(line: str) -> dict[str, Any] | DataError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return DataError("no JSON", [Problem("a JSON object", str(error)[:200], "Correct this line.")])
    if isinstance(row, dict):
        return row
    return DataError("no object", [Problem("a JSON object", type(row).__name__, "Correct this line.")])


def _delimited(numbered: Iterator[tuple[int, str | DataError]], delimiter: str) -> Iterator[Line]:
    place = [0]

    def texts() -> Iterator[str]:
        for number, line in numbered:
            place[0] = number
            yield "" if isinstance(line, DataError) else line

    header: list[str] = []
    reader = csv.reader(texts(), delimiter=delimiter)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield place[0], DataError("no CSV", [Problem("a row of CSV", str(error), "Correct this line.")])
            continue
        if cells is None:
            return
        if not any(cells):
            continue
        if not header:
            header = cells
        elif len(cells) != len(header):
            problem = Problem(f"{len(header)} cells, as in the header", f"{len(cells)}", "Correct this line.")
            yield place[0], DataError("a row of another width", [problem])
        else:
            yield place[0], dict(zip(header, cells, strict=True))
