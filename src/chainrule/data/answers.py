"""The right answers to questions about contexts, from the forms in which data sets hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from chainrule.core.spans import Answers, Span, Spans
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import unfit
from chainrule.data.table import Table, text_of
from chainrule.data.texts import Texts, values_of
from chainrule.errors import Problem

START, IMPOSSIBLE = "answer_start", "is_impossible"  # columns that may stand beside the answers
_FORM = '{"text": ["Paris"], "answer_start": [17]}'
_STARTS = (START, "start")


def read_answers(table: Table, field: str, column: str, contexts: Texts) -> tuple[Answers, list[Flaw]]:
    """The answers of each row as pieces of its context, and what is wrong with them.

    Args:
        contexts: (n,) texts; None where one is missing, which is not told again.
    """
    flaws: list[Flaw] = []
    found: list[list[Span]] = []
    rows = zip(contexts, _column(table, column), _column(table, START), _column(table, IMPOSSIBLE), strict=False)
    for index, (context, cell, start, impossible) in enumerate(rows):
        spans: list[Span] = []
        number = int(table.rows[index])
        try:
            for place, answer in enumerate(_answers(cell, start, impossible), start=1):
                if context:
                    spans.append(_span(answer, place, context))
        except _UnusableError as wrong:
            problem = Problem(wrong.expected, wrong.got, wrong.todo, table.where(index, field))
            flaws.append(Flaw(wrong.kind, number, problem))
            spans = []
        trimmed = [_trimmed(span, context) for span in spans]
        if trimmed != spans:
            flaws.append(Flaw("span-white-space", number))
        found.append(trimmed)
    return Answers(contexts, Spans.of(found)), flaws


class _UnusableError(Exception):
    """Why a row cannot be used."""

    def __init__(self, expected: str, got: str, todo: str, kind: str = "bad-answers") -> None:
        super().__init__(got)
        self.expected, self.got, self.todo, self.kind = expected, got, todo, kind


def _column(table: Table, name: str) -> Iterator[Any]:
    return values_of(table.columns.column(name)) if name in table.names else repeat(None)


def _answers(cell: Any, start: Any, impossible: Any) -> list[tuple[str, int]]:
    """The text and the first character of each answer, as the row says; none where it says that there is none.

    Raises:
        _UnusableError: it says neither, or cannot be read.
    """
    none = str(impossible).strip().lower() in ("true", "1", "1.0")
    value = _json(cell) if isinstance(cell, str) else cell
    if value is None or value == "":
        if none:
            return []
        todo = f"Give the answer, or say that there is none: [], or true in a column {IMPOSSIBLE}."
        raise _UnusableError("an answer", "nothing", todo, "missing-label")
    answers = [_answer(item, shorten(str(cell))) for item in _listed(value, start)]
    if answers and none:
        got = f"{shorten(answers[0][0])} although {IMPOSSIBLE} is true"
        raise _UnusableError("no answer to an impossible question", got, f"Correct the answer or {IMPOSSIBLE}.")
    return answers


def _json(cell: str) -> Any:
    """What a cell holds: a list or an object where it is one in JSON, else its text."""
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return cell if unfit(value) else value


def _listed(value: Any, start: Any) -> list[tuple[Any, Any]]:
    """Pairs of a text and a beginning, whatever they are, from one object of lists, a list of objects, or one text."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), next((value[key] for key in _STARTS if key in value), None)
        if isinstance(texts, list) and isinstance(starts, list):
            if len(texts) != len(starts):
                got = f"{len(texts)} texts and {len(starts)} beginnings"
                raise _UnusableError("a beginning for each text", got, "Correct or remove this row.")
            return list(zip(texts, starts, strict=True))
        return [(texts, starts)]
    if not isinstance(value, list):
        return [(text_of(value), start)]
    if value and not all(isinstance(item, dict) for item in value):
        starts = start if isinstance(start, list) and len(start) == len(value) else [None] * len(value)
        return list(zip(value, starts, strict=True))
    return [pair for item in value for pair in _listed(item, None)]


def _answer(pair: tuple[Any, Any], shown: str) -> tuple[str, int]:
    text, start = pair[0] if isinstance(pair[0], list | dict) else text_of(pair[0]), pair[1]
    whole = start
    if (isinstance(start, str) and start.strip().isdecimal()) or (isinstance(start, float) and start.is_integer()):
        whole = int(start)
    if not isinstance(text, str) or type(whole) is not int:
        got = f"no whole number ({shorten(str(start))}) for {shorten(str(text))}" if text else shown
        if text and start is None:
            got = f"no beginning of {shorten(str(text))}"
        todo = f"Write each answer with its first character, such as {_FORM}."
        raise _UnusableError("an answer's text and where it begins", got, todo)
    if not text.strip():
        got = "only white space" if text else "an empty text"
        raise _UnusableError("an answer with text", got, "Remove it, or write [] for no answer.")
    return text, whole


def _span(answer: tuple[str, int], place: int, context: str) -> Span:
    """Where the answer stands.

    Raises:
        _UnusableError: not where it is said to.
    """
    text, start = answer
    end = start + len(text)
    if not 0 <= start < len(context):
        got = f"{start} ({shorten(text)}, number {place})"
        raise _UnusableError(f"a beginning inside the context's {len(context):,} characters", got, _todo(text, context))
    there = context[start:end]
    if there != text:
        got = f"{shorten(there)} at {start} instead of {shorten(text)}"
        raise _UnusableError("the answer's text at its place", got, _todo(text, context))
    return start, end, 0


def _todo(text: str, context: str) -> str:
    at = context.find(text)
    known = f"It stands at {at}. " if at >= 0 and context.find(text, at + 1) < 0 else ""
    return f"{known}Count characters, not bytes or tokens, from 0; or correct the texts."


def _trimmed(span: Span, context: str) -> Span:
    """Without white space at its ends."""
    start, end, kind = span
    piece = context[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip()), kind
