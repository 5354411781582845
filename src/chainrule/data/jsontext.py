"""JSON Lines and JSON arrays of objects."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from chainrule.data.encodings import encoding_problem, refuse_wide
from chainrule.data.flaws import Flaw, refuse_names, shorten
from chainrule.data.table import Table, array_of
from chainrule.errors import DataError, Problem, Where

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_DEPTH = 100  # of lists and objects inside one another; what reads them further on calls itself at each level
_MAX_EMPTY = 20_000_000  # cells without a value, and
_MAX_EMPTY_SHARE = 50  # how many for each one with a value

Item = tuple[int, int | None, "dict[str, Any] | None", "Problem | None", str]  # row, line, object, problem, kind


def read_json_lines(path: Path, shown: str, chunk_rows: int | None) -> Iterator[tuple[Table, list[Flaw]]]:
    """Yield tables of up to `chunk_rows` good rows (None: all in one), each with the flaws met on the way.

    A key that some objects lack is a missing value in those rows.
    """
    items = _lines(path, shown)
    while batch := list(islice(items, chunk_rows)):
        yield _table(batch, shown)


def read_json(path: Path, shown: str, chunk_rows: int | None) -> Iterator[tuple[Table, list[Flaw]]]:
    """Read a `.json` file: an array of objects, or (by content) JSON Lines under the wrong name.

    Raises:
        DataError: the file is neither.
    """
    raw = path.read_bytes()
    refuse_wide(raw[:4096], shown)
    values = _array(raw.removeprefix(codecs.BOM_UTF8), shown)
    if values is None:
        yield from read_json_lines(path, shown, chunk_rows)
        return
    items = (_item(value, row, Where(file=shown, row=row)) for row, value in enumerate(values, start=1))
    while batch := list(islice(items, chunk_rows)):
        yield _table(batch, shown)


def objects_table(objects: Sequence[dict[str, Any]], shown: str, rows: np.ndarray, lines: np.ndarray | None) -> Table:
    """Objects as columns: all keys in order of first appearance, missing where an object lacks one."""
    names = list(dict.fromkeys(key for item in objects for key in item))
    _refuse_sparse(names, objects, shown)
    arrays = [array_of([item.get(name) for item in objects]) for name in names]
    return Table(shown, pa.table(arrays, names=names), rows, lines)


def _refuse_sparse(names: Sequence[str], objects: Sequence[dict[str, Any]], shown: str) -> None:
    """Few values under ever new keys would make a table that fills the memory with nothing."""
    todo = "Give every object the same keys; write what varies as a list."
    refuse_names(names, Where(file=shown), todo)
    values = sum(map(len, objects))
    empty = len(names) * len(objects) - values
    if empty > max(_MAX_EMPTY, _MAX_EMPTY_SHARE * values):
        got = f"{len(names):,} keys in {len(objects):,} objects, of which most have few"
        problem = Problem("objects that share their keys", got, todo, Where(file=shown))
        raise DataError(f"{shown} has too many different keys.", [problem])


def has_surrogate(value: Any) -> bool:
    """Whether any text inside a nested value has half of a surrogate pair, which no encoding can write."""
    return unfit(value) == "surrogate"


def unfit(value: Any) -> Literal["surrogate", "depth", ""]:
    """Why a nested value cannot be used: half of a surrogate pair in a text, or more than MAX_DEPTH levels."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, str):
            if _SURROGATE.search(part) is not None:
                return "surrogate"
        elif isinstance(part, dict | list | tuple):
            if depth == MAX_DEPTH:
                return "depth"
            inside = itertools.chain(part.keys(), part.values()) if isinstance(part, dict) else part
            waiting += [(inner, depth + 1) for inner in inside]
    return ""


def surrogate_problem(where: Where) -> Problem:
    """The problem of a text with half of a surrogate pair."""
    return Problem(
        where=where,
        expected="text that can be written as UTF-8",
        got=r"half of a surrogate pair, such as \ud83d without its second half",
        todo="Write the data again from its source; a text was probably cut in the middle of a character.",
    )


def _lines(path: Path, shown: str) -> Iterator[Item]:
    row = 0
    with path.open("rb") as file:
        refuse_wide(file.peek(4096), shown)
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if not line.strip():
                yield number, number, None, None, "blank-line"
                continue
            row += 1
            where = Where(file=shown, row=row, line=number)
            value, problem, kind = _parse(line, where)
            if problem is not None:
                yield row, number, None, problem, kind
            elif _ESCAPED_SURROGATE.search(line) is None and line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
                yield _checked_object(value, row, where)
            else:
                yield _item(value, row, where)


def _parse(raw: bytes, where: Where) -> tuple[Any, Problem | None, str]:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique), None, ""
    except UnicodeDecodeError:
        return None, encoding_problem(where, raw), "wrong-encoding"
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}, character {error.pos + 1}"
        shown = shorten(raw.decode("utf-8").strip(), 40)
        problem = Problem("a JSON object", f"{shown} ({reason})", "Correct or remove this row.", where)
        return None, problem, "broken-json"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return result


def _item(value: Any, row: int, where: Where) -> Item:
    wrong = unfit(value)
    if wrong == "surrogate":
        return row, where.line, None, surrogate_problem(where), "wrong-encoding"
    if wrong == "depth":
        got = f"lists and objects more than {MAX_DEPTH} deep inside one another"
        return row, where.line, None, Problem("a JSON object", got, "Correct or remove this row.", where), "broken-json"
    return _checked_object(value, row, where)


def _checked_object(value: Any, row: int, where: Where) -> Item:
    if isinstance(value, dict):
        return row, where.line, value, None, ""
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    got = f"{kinds.get(type(value), 'a number')}: {shorten(json.dumps(value, ensure_ascii=False), 40)}"
    problem = Problem('a JSON object such as {"text": "…", "label": "…"}', got, "Correct or remove this row.", where)
    return row, where.line, None, problem, "broken-json"


def _table(batch: Sequence[Item], shown: str) -> tuple[Table, list[Flaw]]:
    flaws = [Flaw(kind, row, problem) for row, _, value, problem, kind in batch if value is None]
    good = [(row, line, value) for row, line, value, _, _ in batch if value is not None]
    rows = np.array([row for row, _, _ in good], np.int64)
    has_lines = any(line is not None for _, line, _, _, _ in batch)
    lines = np.array([line for _, line, _ in good], np.int64) if has_lines else None
    return objects_table([value for _, _, value in good], shown, rows, lines), flaws


def _array(raw: bytes, shown: str) -> list[Any] | None:
    """The array in a file, or None where objects follow one another without one."""
    todo = "Write an array of objects, or JSON Lines (one object per line, .jsonl)."
    where = Where(file=shown)
    got = ""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if isinstance(value, list):
            return value
        got = "an object" if isinstance(value, dict) else "a single value"
    except UnicodeDecodeError:
        raise DataError(f"{shown} is not UTF-8 text.", [encoding_problem(where, raw)]) from None
    except json.JSONDecodeError as error:
        if raw.lstrip()[:1] == b"{" and error.msg == "Extra data":
            return None
        where = Where(file=shown, line=error.lineno)
        got = "an empty file" if not raw.strip() else f"broken JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        got = "JSON nested too deeply" if isinstance(error, RecursionError) else f"broken JSON ({error})"
    problem = Problem('a JSON array of objects such as [{"text": "…", "label": "…"}]', got, todo, where)
    raise DataError(f"{shown} cannot be read as JSON.", [problem])
