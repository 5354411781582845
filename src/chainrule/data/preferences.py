"""Two replies to one conversation, of which one was preferred: from the common forms to one.

A row's input is the list of turns before the reply, as JSON; its target is the pair of replies, as JSON, the preferred
one first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chainrule.core.recipe import Clean
from chainrule.data.chat import REPLY, Conversations, Turn, UnusableError, as_text, read_turn, tools_of
from chainrule.data.clean import clean_text
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import unfit
from chainrule.data.table import Table
from chainrule.data.texts import text_columns
from chainrule.errors import Problem

CHOSEN, REJECTED = "chosen", "rejected"


def read_preferences(table: Table, fields: Mapping[str, str], clean: Clean) -> Conversations:
    """Read every row's turns and its two replies.

    Args:
        fields: field -> column: `chosen` and `rejected`, each a reply or a whole conversation that ends in it; `prompt`
            or `messages`, not needed where those are whole; perhaps `context` and `system`.

    Returns:
        Conversations whose replies are pairs.
    """
    cells = {name: table.texts(column) for name, column in fields.items()}
    flaws: list[Flaw] = []
    cleaned: list[int] = []

    def rows() -> Iterator[tuple[str, str | None]]:
        for index, values in enumerate(zip(*cells.values(), strict=True)):
            row, number = dict(zip(cells, values, strict=True)), int(table.rows[index])
            try:
                turns, pair = _row(row)
                tools = tools_of(row)
            except UnusableError as wrong:
                problem = Problem(wrong.expected, wrong.got, wrong.todo, table.where(index, wrong.field))
                flaws.append(Flaw(wrong.kind, number, problem))
                yield "", None
                continue
            after = [{**turn, "content": clean_text(turn["content"], clean)} for turn in turns]
            replies = [clean_text(reply, clean) for reply in pair]
            if (after, replies) != (turns, pair):
                cleaned.append(number)
            if any("\ufffd" in text for text in [*replies, *(turn["content"] for turn in after)]):
                flaws.append(Flaw("replacement-character", number))
            yield as_text([*tools, *after]), json.dumps(replies, ensure_ascii=False)

    columns = text_columns(rows(), ["contexts", "replies"])
    return Conversations(columns["contexts"], columns["replies"], flaws, cleaned)


def pair_of(text: str) -> tuple[str, str]:
    """The preferred reply and the other."""
    chosen, rejected = json.loads(text)
    return chosen, rejected


def _row(row: Mapping[str, str | None]) -> tuple[list[Turn], list[str]]:
    before = _before(row)
    pair, starts = [], []
    for name in (CHOSEN, REJECTED):
        turns = _messages(row[name], name)
        if turns is None:
            pair.append(row[name] or "")
            continue
        if turns[-1]["role"] != REPLY:
            todo = "End it with the assistant's reply."
            raise UnusableError(name, "a conversation that ends in a reply", f"one of the {turns[-1]['role']}", todo)
        pair.append(turns[-1]["content"])
        starts += [turns[:-1]] if len(turns) > 1 else []
    if any(start != starts[0] for start in starts) or (before and any(start != before for start in starts)):
        todo = "The two must answer the same turns; correct or remove this row."
        raise UnusableError(REJECTED, "the same turns before both replies", "different ones", todo)
    turns = before or (starts[0] if len(starts) == 2 else [])
    if not any(turn["role"] != "system" for turn in turns):
        raise UnusableError("prompt", "a prompt", "nothing", "Fill in or remove this row.", "empty-text")
    for name, reply in zip((CHOSEN, REJECTED), pair, strict=True):
        if not reply.strip() or "\0" in reply:
            got = "a NUL byte" if reply.strip() else "nothing"
            raise UnusableError(name, "a reply", got, "Fill in or remove this row.", "no-reply")
    if pair[0] == pair[1]:
        todo = "Remove this row: it prefers nothing."
        raise UnusableError(REJECTED, "another reply than the chosen one", "the same", todo, "same-replies")
    if any("\0" in turn["content"] for turn in turns):
        raise UnusableError("prompt", "text", "a NUL byte", "Remove the NUL bytes.", "nul-byte")
    return turns, pair


def _before(row: Mapping[str, str | None]) -> list[Turn]:
    """The turns before the replies, as the row has them; none where the replies bring their own."""
    name = next((name for name in ("messages", "prompt") if name in row), None)
    if name is None:
        return []
    turns = _messages(row[name], name)
    if turns is None:
        asked = [part for part in (row[name], row.get("context")) if part and not part.isspace()]
        turns = [{"role": "user", "content": "\n\n".join(asked)}] if asked else []
    system = row.get("system") or ""
    if system.strip() and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _messages(cell: str | None, field: str) -> list[Turn] | None:
    """The turns of a list of messages; None for a cell that is a text."""
    if cell is None or not cell.lstrip().startswith("["):
        return None
    try:
        value: Any = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value) or unfit(value):
        return None
    if not any("role" in item or "from" in item for item in value):
        raise UnusableError(field, "messages with roles", shorten(cell), "Correct this row.")
    return [read_turn(item, place) for place, item in enumerate(value, start=1)]
