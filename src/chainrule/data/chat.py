"""Conversations: from prompt and reply columns, or a column of messages, to one form.

A row's input is the list of turns before the last reply, as JSON; its target is that reply. Earlier replies of the same
conversation stay in the input, and are learned too. Tools that the model may call stand before all turns, as a turn of
their own; a text that is no conversation is a single turn, and its reply is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.core.recipe import Clean
from chainrule.data.clean import clean_text
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.jsontext import surrogate_problem, unfit
from chainrule.data.table import Table
from chainrule.data.texts import Texts, text_columns
from chainrule.errors import Problem, Where

MESSAGES = "messages"
REPLY = "assistant"
TOOLS, TEXT = "tools", "text"  # roles of what is no turn: the tools as a JSON list; a text without a conversation
PLAIN = "plain_text"  # the field of such texts
_NO_TOOLS = ("", "[]", "null")

# What the common formats call the same four roles; a function call is something the model has to write.
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "function_call"), REPLY),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_EXAMPLE = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'

Turn = dict[str, str]


@dataclass(frozen=True)
class Conversations:
    """The rows of a table in one form.

    Attributes:
        contexts: (n,) the turns before the reply as JSON; empty where the row cannot be used.
        replies: (n,) the reply; None where the row cannot be used, or none was asked for.
        cleaned: numbers of the rows that cleaning changed.
    """

    contexts: Texts
    replies: Texts
    flaws: list[Flaw]
    cleaned: list[int]


def read_conversations(table: Table, fields: Mapping[str, str], clean: Clean, *, with_reply: bool) -> Conversations:
    """Read every row's turns.

    Args:
        fields: field -> column: `messages`, or `prompt` with perhaps `context`, `system` and `response`, each perhaps
            with `tools`; or `plain_text` alone.
        with_reply: the last reply is split off as the target, and a row without one cannot be used. Without it a
            conversation that ends in a reply is read up to that reply: it is what is to be written anew.
    """
    cells = {name: table.texts(column) for name, column in fields.items()}
    flaws: list[Flaw] = []
    cleaned: list[int] = []

    def rows() -> Iterator[tuple[str, str | None]]:
        for index, values in enumerate(zip(*cells.values(), strict=True)):
            row, number = dict(zip(cells, values, strict=True)), int(table.rows[index])
            try:
                before = _turns(row, with_reply)
                turns = [{**turn, "content": clean_text(turn["content"], clean)} for turn in before]
                context, reply, left = _split(turns, with_reply)
                _refuse_empty(turns[: len(context) + (reply is not None)], row)
                context = [*tools_of(row), *context]
            except UnusableError as wrong:
                problem = Problem(wrong.expected, wrong.got, wrong.todo, table.where(index, wrong.field))
                flaws.append(Flaw(wrong.kind, number, problem))
                yield "", None
                continue
            if turns != before:
                cleaned.append(number)
            if left:
                flaws.append(Flaw("unanswered-turn", number))
            if any("\ufffd" in turn["content"] for turn in turns):
                flaws.append(Flaw("replacement-character", number))
            yield as_text(context), reply

    columns = text_columns(rows(), ["contexts", "replies"])
    return Conversations(columns["contexts"], columns["replies"], flaws, cleaned)


def as_text(turns: Sequence[Turn]) -> str:
    """Turns as the JSON text that `turns_of` reads."""
    return json.dumps(list(turns), ensure_ascii=False)


def turns_of(text: str) -> list[Turn]:
    """The turns of a context."""
    return list(json.loads(text))


def prompt_of(text: str) -> str:
    """The context of a single prompt."""
    return as_text([{"role": "user", "content": text}])


def beginning_of(text: str) -> str:
    """The context of a text that is no conversation."""
    return as_text([{"role": TEXT, "content": text}])


def is_plain(turns: Sequence[Turn]) -> bool:
    """Whether they are a text that is no conversation."""
    return turns[0]["role"] == TEXT


class UnusableError(Exception):
    """Why a row cannot be used."""

    def __init__(self, field: str, expected: str, got: str, todo: str, kind: str = "bad-messages") -> None:
        super().__init__(got)
        self.field, self.expected, self.got, self.todo, self.kind = field, expected, got, todo, kind


def _turns(row: Mapping[str, str | None], with_reply: bool) -> list[Turn]:
    system = row.get("system") or ""
    if PLAIN in row:
        return [{"role": TEXT, "content": row[PLAIN] or ""}]
    if MESSAGES in row:
        turns = [read_turn(raw, place) for place, raw in enumerate(_list(row[MESSAGES]), start=1)]
    else:
        asked = [part for part in (row["prompt"], row.get("context")) if part and not part.isspace()]
        turns = [{"role": "user", "content": "\n\n".join(asked)}]
        if not row["prompt"] or row["prompt"].isspace():
            raise UnusableError("prompt", "a prompt", "nothing", "Fill in or remove this row.", "empty-text")
        if with_reply:
            turns.append({"role": REPLY, "content": row["response"] or ""})
    if system.strip() and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return turns


def tools_of(row: Mapping[str, str | None]) -> list[Turn]:
    """The tools of a row as a turn; none where it has none."""
    cell = (row.get(TOOLS) or "").strip()
    if cell in _NO_TOOLS:
        return []
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = None
    if unfit(value) or not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UnusableError(TOOLS, "a JSON list of objects, each a tool", shorten(cell), "Correct or empty this cell.")
    return [{"role": TOOLS, "content": cell}]


def _list(cell: str | None) -> list[Any]:
    if cell is None or not cell.strip():
        raise UnusableError(MESSAGES, "a list of messages", "nothing", "Fill in or remove this row.")
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = None
    wrong = unfit(value)
    if wrong == "surrogate":
        problem = surrogate_problem(Where())
        raise UnusableError(MESSAGES, problem.expected, problem.got, problem.todo, "wrong-encoding")
    if wrong or not isinstance(value, list) or not value:
        raise UnusableError(MESSAGES, f"a list of messages such as {_EXAMPLE}", shorten(cell), "Correct this row.")
    return value


def read_turn(raw: Any, place: int) -> Turn:
    """One message of either format, in ours."""
    if not isinstance(raw, dict):
        raise UnusableError(MESSAGES, f"an object as message {place}", shorten(str(raw)), "Correct this row.")
    role = raw.get("role") or raw.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        got = f"the role {shorten(str(role))}" if role else "no role"
        raise UnusableError(MESSAGES, f"a role of message {place}: {known}", got, "Correct the role.")
    if raw.get("tool_calls"):
        todo = "Write the call as the content of the message, in the form the model should write it."
        raise UnusableError(MESSAGES, f"message {place} as text", "tool_calls", todo)
    content = raw.get("content") if raw.get("content") is not None else raw.get("value")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        got = "nothing" if content is None else shorten(str(content))
        raise UnusableError(MESSAGES, f"a text as the content of message {place}", got, "Correct this row.")
    return {"role": _ROLES[role], "content": content}


def _split(turns: list[Turn], with_reply: bool) -> tuple[list[Turn], str | None, int]:
    """The turns before the last reply, the reply, and how many turns come after it."""
    if is_plain(turns):
        return turns, "" if with_reply else None, 0
    ends = [place for place, turn in enumerate(turns) if turn["role"] == REPLY]
    if not with_reply:
        context = turns[:-1] if turns[-1]["role"] == REPLY else turns
        reply, left = None, 0
    elif not ends:
        raise UnusableError(MESSAGES, "a reply of the assistant", "none", "Add it or remove this row.", "no-reply")
    else:
        context, reply, left = turns[: ends[-1]], turns[ends[-1]]["content"], len(turns) - ends[-1] - 1
    if not any(turn["role"] != "system" for turn in context):
        raise UnusableError(MESSAGES, "something to reply to", "no turn before the reply", "Add it.")
    return context, reply, left


def _refuse_empty(turns: Sequence[Turn], row: Mapping[str, str | None]) -> None:
    whole = MESSAGES in row
    for place, turn in enumerate(turns, start=1):
        is_reply = turn["role"] == REPLY
        field = MESSAGES if whole else "response" if is_reply else PLAIN if PLAIN in row else "prompt"
        if "\0" in turn["content"]:
            raise UnusableError(field, "text", "a NUL byte", "Remove the NUL bytes.", "nul-byte")
        if turn["role"] != "system" and not turn["content"].strip():
            got = f"an empty turn of the {turn['role']} (turn {place})" if whole else "nothing"
            kind = "no-reply" if is_reply else "empty-text"
            raise UnusableError(field, "a text", got, "Fill in or remove this row.", kind)
