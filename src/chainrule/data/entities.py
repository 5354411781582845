"""Texts with marked pieces: from words and their tags, or from texts and spans, to one form.

A row's input is JSON: a list of words, or a text as one string. Its target is the spans of its entities, in characters
of the text; words make a text by `text_of_words`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from chainrule.core.spans import ALONE, Span, Spans
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import surrogate_problem, unfit
from chainrule.data.table import Table, text_of
from chainrule.data.targets import Entities
from chainrule.data.texts import Texts, text_columns, values_of
from chainrule.errors import Problem, Where

TOKENS = "tokens"
OUTSIDE = "O"
_WORD = re.compile(rf"(?!\s)[{ALONE}]|(?:(?![{ALONE}])\w)+|[^\w\s]")
_TOUCHING = re.compile(rf"[{ALONE}]")
_TAG = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)  # BIO, BIOES and BILOU; M is another I
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ESLU")
_LABEL_KEYS = ("label", "type", "entity", "entity_group", "labels")
_SPAN = '{"start": 0, "end": 5, "label": "PER"}'
_TAGS = "O, or B- or I- and a type, such as B-PER (BIOES and BILOU are read, too)"


@dataclass(frozen=True)
class Marked:
    """The rows of a table in one form.

    Attributes:
        inputs: (n,) JSON, what `units_of` reads; empty where the row cannot be used.
        values: the entities of each row, none where the row cannot be used.
    """

    inputs: Texts
    values: Entities
    flaws: list[Flaw]


def text_of_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """Words as a text, with the place of each: a space between two, but not between two Chinese or Japanese ones."""
    parts: list[str] = []
    starts: list[int] = []
    length, before = 0, ""
    for word in words:
        if before and not (_TOUCHING.match(before[-1]) and _TOUCHING.match(word)):
            parts.append(" ")
            length += 1
        starts.append(length)
        parts.append(word)
        length, before = length + len(word), word
    return "".join(parts), starts


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: runs of letters and digits; any other mark, Chinese or Japanese one is a word."""
    return [match.span() for match in _WORD.finditer(text)]


def units_of(cell: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of an input, and where each of its words begins and ends."""
    value = json.loads(cell)
    if isinstance(value, str):
        return value, words_of(value)
    text, starts = text_of_words(value)
    return text, [(start, start + len(word)) for start, word in zip(starts, value, strict=True)]


def as_input(text: str | Sequence[str]) -> str:
    """A text, or words, as the JSON that `units_of` reads."""
    return json.dumps(text if isinstance(text, str) else list(text), ensure_ascii=False)


def is_words(cell: str) -> bool:
    """Whether an input is a list of words, and not a text."""
    return cell.startswith("[")


def tags_of(spans: Sequence[Span], units: Sequence[tuple[int, int]]) -> np.ndarray:
    """(units,) int32: 0 outside, 2 k + 1 where a span of kind k begins, 2 k + 2 inside. A word is touched whole."""
    tags = np.zeros(len(units), dtype=np.int32)
    starts, ends = np.array(units, dtype=np.int64).reshape(-1, 2).T
    for start, end, kind in spans:
        touched = np.flatnonzero((ends > start) & (starts < end))
        tags[touched] = 2 * kind + 2
        tags[touched[:1]] -= 1
    return tags


def spans_of(tags: Sequence[int], places: Sequence[tuple[int, int]]) -> list[Span]:
    """The opposite of `tags_of`; an "inside" that continues nothing begins a span, as conlleval takes it."""
    found: list[Span] = []
    open_kind = -1
    for tag, (start, end) in zip(tags, places, strict=True):
        kind = (tag - 1) // 2 if tag else -1
        if kind < 0:
            open_kind = -1
            continue
        if tag % 2 or kind != open_kind:
            found.append((start, end, kind))
        else:
            found[-1] = (found[-1][0], end, kind)
        open_kind = kind
    return found


def tag_names(labels: Sequence[str]) -> tuple[str, ...]:
    """What the tags of `tags_of` are called."""
    return (OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


def read_marked(table: Table, fields: Mapping[str, str], target: str | None) -> Marked:
    """Read every row's words or text, and its entities.

    Args:
        fields: field -> column: `tokens` or `text`, and the target.
        target: the target's field; None to read inputs alone.
    """
    source = TOKENS if TOKENS in fields else "text"
    cells = values_of(table.columns.column(fields[source]))
    marks = values_of(table.columns.column(fields[target])) if target else iter([None] * len(table))
    flaws: list[Flaw] = []
    names: dict[str, int] = {}
    found: list[list[Span]] = []

    def rows() -> Iterator[tuple[str]]:
        for index, (cell, mark) in enumerate(zip(cells, marks, strict=True)):
            number = int(table.rows[index])
            try:
                value: str | list[str] = _words(cell) if source == TOKENS else _text(cell)
                if "\ufffd" in "".join(value):
                    flaws.append(Flaw("replacement-character", number))
                if target is not None:
                    value, spans, notes = _marked(value, mark, target)
                    found.append([(start, end, names.setdefault(name, len(names))) for start, end, name in spans])
                    flaws.extend(Flaw(note, number) for note in notes)
            except _UnusableError as wrong:
                where = table.where(index, wrong.field or source)
                flaws.append(Flaw(wrong.kind, number, Problem(wrong.expected, wrong.got, wrong.todo, where)))
                found.append([])
                yield ("",)
                continue
            yield (as_input(value),)

    inputs = text_columns(rows(), [TOKENS])[TOKENS]
    return Marked(inputs, Entities(tuple(names), Spans.of(found)), flaws)


class _UnusableError(Exception):
    """Why a row cannot be used."""

    def __init__(self, kind: str, expected: str, got: str, todo: str, field: str | None = None) -> None:
        super().__init__(got)
        self.kind, self.expected, self.got, self.todo, self.field = kind, expected, got, todo, field


def _text(cell: Any) -> str:
    text = text_of(cell)
    if text is None or not text.strip():
        got = "a missing value" if text is None else "only white space" if text else "an empty cell"
        raise _UnusableError("empty-text", "a text", got, "Fill in or remove this row.")
    if "\0" in text:
        got = f"a NUL byte at character {text.index(chr(0)) + 1}"
        raise _UnusableError("nul-byte", "text", got, "Remove the NUL bytes; the file may be damaged.")
    return text


def _words(cell: Any) -> list[str]:
    value = _json(cell) if isinstance(cell, str) and cell.lstrip().startswith("[") else cell
    value = value.split() if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        got = "a missing value" if cell is None else "no words" if value == [] else shorten(str(cell))
        raise _UnusableError("empty-text", "a list of words", got, "Fill in or remove this row.")
    words = [text_of(word) for word in value]
    for place, word in enumerate(words, start=1):
        if not word or "\0" in word:
            got = f"nothing at word {place}" if not word else f"a NUL byte in word {place}"
            raise _UnusableError("bad-tokens", "words of at least one character", got, "Correct or remove this row.")
    return [str(word) for word in words]


def _json(cell: str) -> Any:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    wrong = unfit(value)
    if wrong == "surrogate":
        problem = surrogate_problem(Where())
        raise _UnusableError("wrong-encoding", problem.expected, problem.got, problem.todo)
    return cell if wrong else value


def _marked(
    value: str | list[str], mark: Any, target: str
) -> tuple[str | list[str], list[tuple[int, int, str]], list[str]]:
    """The text or words, their entities, and the kinds of what is worth telling of them."""
    given = _json(mark) if isinstance(mark, str) else mark
    if given is None or given == "":
        raise _UnusableError("missing-label", "tags or spans", "nothing", "Mark the entities, or write [].", target)
    if isinstance(given, str) and (given == OUTSIDE or given[1:2] in ("-", " ")):
        given = given.split()
    if not isinstance(given, list):
        got = shorten(str(mark))
        raise _UnusableError(
            "bad-entities", f"a list of tags, or of spans such as {_SPAN}", got, "Write it so.", target
        )
    if isinstance(value, list) or (given and all(isinstance(item, str) for item in given)):
        words = value if isinstance(value, list) else value.split()
        return words, *_from_tags(words, given, target)
    spans, notes = _from_spans(value, given, target)
    return value, spans, notes


def _from_tags(words: Sequence[str], tags: Sequence[Any], target: str) -> tuple[list[tuple[int, int, str]], list[str]]:
    if len(tags) != len(words):
        got = f"{len(tags):,} for {len(words):,} words"
        raise _UnusableError("bad-entities", "as many tags as words", got, "Correct or remove this row.", target)
    starts = text_of_words(words)[1]
    found: list[tuple[int, int, str]] = []
    notes: set[str] = set()
    open_name = None
    for place, (tag, start, word) in enumerate(zip(tags, starts, words, strict=True), start=1):
        if tag == OUTSIDE:
            open_name = None
            continue
        match = _TAG.fullmatch(tag) if isinstance(tag, str) else None
        if match is None:
            todo = "Write the tags' names, not their numbers." if isinstance(tag, int) else "Correct the tag."
            raise _UnusableError("bad-entities", _TAGS, f"{shorten(str(tag))} at word {place}", todo, target)
        prefix, name = match[1], match[2]
        if prefix in _BEGINS or name != open_name:
            found.append((start, start + len(word), name))
            notes |= set() if prefix in _BEGINS else {"inside-without-begin"}
        else:
            found[-1] = (found[-1][0], start + len(word), name)
        open_name = None if prefix in _ENDS else name
    return found, sorted(notes)


def _from_spans(text: str, items: Sequence[Any], target: str) -> tuple[list[tuple[int, int, str]], list[str]]:
    found: list[tuple[int, int, str]] = []
    notes: set[str] = set()
    units = words_of(text)
    borders = {start for start, _ in units}, {end for _, end in units}
    for place, item in enumerate(items, start=1):
        start, end, name = _span(item, place, text, target)
        piece = text[start:end]
        if piece != piece.strip():
            notes.add("span-white-space")
            start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        if start not in borders[0] or end not in borders[1]:
            notes.add("span-inside-word")
        found.append((start, end, name))
    found.sort()
    for (_, end, name), (start, _, other) in pairwise(found):
        if start < end:
            got = f"{shorten(name)} and {shorten(other)}, which share character {start + 1}"
            raise _UnusableError("bad-entities", "entities that do not overlap", got, "Keep one of them.", target)
    return found, sorted(notes)


def _span(item: Any, place: int, text: str, target: str) -> tuple[int, int, str]:
    """One span as it was written: an object, or a list of start, end and label."""
    if isinstance(item, list) and len(item) == 3:
        item = dict(zip(("start", "end", "label"), item, strict=True))
    given = item if isinstance(item, dict) else {}
    start, end = given.get("start"), given.get("end")
    name = next((given[key] for key in _LABEL_KEYS if given.get(key)), None)
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    if type(start) is not int or type(end) is not int or not isinstance(name, str) or not name.strip():
        got = f"{shorten(json.dumps(item, ensure_ascii=False, default=str))} as number {place}"
        raise _UnusableError("bad-entities", f"spans such as {_SPAN}", got, "Write each span so.", target)
    if not 0 <= start < end <= len(text):
        got = f"{start} to {end} ({shorten(name)}, number {place})"
        todo = "Count characters from 0, the end being one past the last; or correct the text."
        raise _UnusableError("bad-entities", f"a span inside the text's {len(text):,} characters", got, todo, target)
    said, there = given.get("text"), text[start:end]
    if isinstance(said, str) and said != there:
        got = f"{shorten(there)} there instead of {shorten(said)}"
        todo = "Count characters, not bytes or tokens, from 0; or correct the text."
        raise _UnusableError("bad-entities", "the entity's text at its place", got, todo, target)
    if not there.strip():
        raise _UnusableError(
            "bad-entities", "a span with text", f"only white space, {start} to {end}", "Remove it.", target
        )
    return start, end, name.strip()
