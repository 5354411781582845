"""Texts that are to be written of others, such as summaries and translations: one a row, or several.

A row's target is the list of its references, as JSON: the first is learned, and what is written may be like any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from chainrule.core.recipe import Clean
from chainrule.data.clean import clean_text
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import unfit
from chainrule.data.table import Table, text_of
from chainrule.data.texts import Texts, values_of
from chainrule.errors import Problem

REFERENCES = "references"  # a column that may stand beside the target's


def read_references(table: Table, field: str, column: str, clean: Clean) -> tuple[Texts, list[Flaw]]:
    """The references of each row as JSON, and what is wrong with them; None where the row cannot be used.

    Args:
        column: texts, or lists of texts. Those of a column "references" come after them, each once.
    """
    flaws: list[Flaw] = []
    more: Any = _values(table, REFERENCES) if REFERENCES in table.names and column != REFERENCES else repeat(None)

    def rows() -> Iterator[str | None]:
        for index, cells in enumerate(zip(_values(table, column), more, strict=False)):
            number = int(table.rows[index])
            try:
                texts = [text for cell in cells for text in _texts(cell)]
                _refuse(texts)
            except _UnusableError as wrong:
                problem = Problem(wrong.expected, wrong.got, wrong.todo, table.where(index, field))
                flaws.append(Flaw(wrong.kind, number, problem))
                yield None
                continue
            if any("\ufffd" in text for text in texts):
                flaws.append(Flaw("replacement-character", number))
            yield as_target([clean_text(text, clean) for text in texts])

    return Texts.of(rows()), flaws


def as_target(references: list[str]) -> str:
    """References as the JSON text that `references_of` reads, each once."""
    return json.dumps([*dict.fromkeys(references)], ensure_ascii=False)


def references_of(target: str) -> list[str]:
    """All references of a row, the one that is learned first."""
    return list(json.loads(target))


class _UnusableError(Exception):
    """Why a row cannot be used."""

    def __init__(self, expected: str, got: str, todo: str, kind: str = "no-target") -> None:
        super().__init__(got)
        self.expected, self.got, self.todo, self.kind = expected, got, todo, kind


def _values(table: Table, column: str) -> Iterator[Any]:
    return values_of(table.columns.column(column))


def _texts(cell: Any) -> list[str]:
    """The texts of a cell: a list, a list in JSON, or one text."""
    value = cell
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            read = json.loads(cell)
        except (ValueError, RecursionError):
            read = cell
        is_list = isinstance(read, list) and all(isinstance(item, str) for item in read) and not unfit(read)
        value = read if is_list else cell
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | dict) for item in items):
        raise _UnusableError("a text, or a list of texts", shorten(str(cell)), "Correct this row.")
    return ["" if item is None else str(text_of(item)) for item in items]


def _refuse(texts: list[str]) -> None:
    if not texts or not all(text.strip() for text in texts):
        got = "nothing" if len(texts) < 2 else f"an empty text among {len(texts)}"
        raise _UnusableError("a text to write", got, "Fill in or remove this row.")
    if any("\0" in text for text in texts):
        raise _UnusableError("text", "a NUL byte", "Remove the NUL bytes.", "nul-byte")
