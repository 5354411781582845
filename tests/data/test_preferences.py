"""Preferences: the common forms come to one, and every bad row is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chainrule.core.recipe import Clean
from chainrule.data.chat import turns_of
from chainrule.data.fields import find_fields
from chainrule.data.preferences import pair_of, read_preferences
from chainrule.data.table import Table
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit
TASK = find_task("preference")
TURNS = (("user", "q"), ("assistant", "a"), ("assistant", "b"))
USER, GOOD, BAD = ({"role": role, "content": text} for role, text in TURNS)


def read(row: dict[str, Any], clean: Clean | None = None) -> Any:
    table = Table("x.jsonl", pa.Table.from_pylist([row]), np.array([4]))
    fields = find_fields(list(row), TASK, named={}, file="x.jsonl")
    return read_preferences(table, fields, clean or Clean())


def problem(row: dict[str, Any]) -> str:
    (flaw,) = read(row).flaws
    return f"{flaw.kind}: {flaw.problem}"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"messages": [USER], "chosen": "a", "rejected": "b"},
        {"messages": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"},
        {"prompt": json.dumps([USER]), "chosen": "a", "rejected": json.dumps([BAD])},
    ],
)
def test_the_common_forms_are_read(row: dict[str, Any]) -> None:
    found = read(row)
    assert found.flaws == []
    assert [turns_of(text) for text in found.contexts] == [[USER]]
    assert [pair_of(text) for text in found.replies] == [("a", "b")]


def test_context_and_system_go_with_the_prompt() -> None:
    found = read({"prompt": "q", "context": "c", "system": "s", "chosen": "a", "rejected": "b"})
    assert [turn["content"] for turn in turns_of(found.contexts[0])] == ["s", "q\n\nc"]


def test_texts_are_cleaned_when_asked() -> None:
    found = read({"prompt": "q  q", "chosen": "a  a", "rejected": "b"}, Clean(white_space=True))
    assert pair_of(found.replies[0]) == ("a a", "b")
    assert found.cleaned == [4]


OTHER = {"role": "user", "content": "z"}
BOSS = {"role": "boss", "content": "q"}
HERE = "x.jsonl, row 4, field"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, f"same-replies: {HERE} 'rejected': expected another"),
        ({"prompt": "q", "chosen": " ", "rejected": "a"}, f"no-reply: {HERE} 'chosen': expected a reply, got nothing"),
        (
            {"prompt": "", "chosen": "a", "rejected": "b"},
            f"empty-text: {HERE} 'prompt': expected a prompt, got",
        ),
        ({"chosen": [USER, GOOD], "rejected": [OTHER, BAD]}, "expected the same turns before both replies"),
        ({"prompt": "z", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "expected the same turns before both"),
        (
            {"prompt": "q", "chosen": [USER], "rejected": "b"},
            "that ends in a reply, got one of the user",
        ),
        ({"prompt": [BOSS], "chosen": "a", "rejected": "b"}, "got the role 'boss'"),
        ({"chosen": "a", "rejected": "b"}, "expected a prompt, got nothing"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], told: str) -> None:
    assert told in problem(row)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError) as caught:
        find_fields(["prompt", "chosen"], TASK, named={}, file="x.csv")
    assert "a column for rejected" in str(caught.value)
