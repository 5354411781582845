"""Conversations from the columns people have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chainrule.core.recipe import Clean, Data
from chainrule.data.chat import turns_of
from chainrule.data.load import Dataset, load
from chainrule.data.stream import load_inputs
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit
TASK = find_task("text-generation")


def loaded(path: Path, rows: list[dict[str, Any]], **spec: Any) -> Dataset:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return load(str(file), Data(**spec), TASK)


def many(row: Callable[[int], dict[str, Any]], count: int = 30) -> list[dict[str, Any]]:
    return [row(number) for number in range(count)]


def first(dataset: Dataset) -> tuple[list[dict[str, str]], str]:
    train = dataset.splits["train"]
    place = train.places.rows.tolist().index(min(train.places.rows.tolist()))
    return turns_of(train.inputs["messages"][place]), train.targets[place]


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "prompt": lambda i: {"prompt": f"Say {i}", "response": "Yes"},
    "alpaca": lambda i: {"instruction": f"Say {i}", "input": "", "output": "Yes"},
    "question": lambda i: {"question": f"Say {i}", "answer": "Yes"},
    "completion": lambda i: {"prompt": f"Say {i}", "completion": "Yes"},
    "input": lambda i: {"input": f"Say {i}", "output": "Yes"},
    "messages": lambda i: {
        "messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": "Yes"}]
    },
    "sharegpt": lambda i: {"conversations": [{"from": "human", "value": f"Say {i}"}, {"from": "gpt", "value": "Yes"}]},
    "parts": lambda i: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": f"Say {i}"}]},
            {"role": "assistant", "content": "Yes"},
        ]
    },
}


@pytest.mark.parametrize("kind", ROWS)
def test_every_form_becomes_the_same(kind: str, tmp_path: Path) -> None:
    dataset = loaded(tmp_path, many(ROWS[kind]))
    assert dataset.report.ok, dataset.report.problems
    context, reply = first(dataset)
    assert len(context) == 1
    assert context[0]["role"] == "user"
    assert context[0]["content"].startswith("Say ")
    assert reply == "Yes"
    assert dataset.labels == ()
    assert not [found for found in dataset.report.findings if found.severity != "info"]


def test_instruction_context_and_system(tmp_path: Path) -> None:
    dataset = loaded(
        tmp_path, many(lambda i: {"system": "Be brief", "instruction": "Sum", "input": f"{i}", "output": "1"})
    )
    context, _ = first(dataset)
    assert [turn["role"] for turn in context] == ["system", "user"]
    assert context[1]["content"].startswith("Sum\n\n")
    assert dataset.fields == {"prompt": "instruction", "context": "input", "system": "system", "response": "output"}


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = many(lambda i: {"q": f"Say {i}", "a": "Yes"})
    dataset = loaded(tmp_path, rows, fields={"text": "q", "label": "a"})
    assert dataset.fields == {"prompt": "q", "response": "a"}
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, rows)
    told = [str(problem) for problem in caught.value.problems]
    assert any("--set data.fields.prompt=COLUMN" in line for line in told)
    assert any("--set data.fields.response=COLUMN" in line for line in told)


def test_earlier_replies_stay_and_roles_of_tools_are_known(tmp_path: Path) -> None:
    talk = [("user", "a"), ("function_call", "{}"), ("observation", "1"), ("assistant", "b")]
    dataset = loaded(tmp_path, many(lambda i: {"messages": [{"role": r, "content": f"{t}{i}"} for r, t in talk]}))
    context, reply = first(dataset)
    assert [turn["role"] for turn in context] == ["user", "assistant", "tool"]
    assert reply.startswith("b")


BAD: list[tuple[Any, str, str]] = [
    ("no list", "bad-messages", "a list of messages"),
    ([], "bad-messages", "a list of messages"),
    (["x"], "bad-messages", "an object as message 1"),
    ([{"role": "wizard", "content": "x"}], "bad-messages", "a role of message 1"),
    ([{"content": "x"}], "bad-messages", "a role of message 1"),
    ([{"role": "user", "content": 3}], "bad-messages", "a text as the content of message 1"),
    ([{"role": "user", "content": "x"}], "no-reply", "a reply of the assistant"),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}], "no-reply", "a text"),
    ([{"role": "user", "content": ""}, {"role": "assistant", "content": "y"}], "empty-text", "a text"),
    ([{"role": "assistant", "content": "y"}], "bad-messages", "something to reply to"),
    ([{"role": "user", "content": "a\0"}, {"role": "assistant", "content": "y"}], "nul-byte", "text"),
    (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
        "bad-messages",
        "message 2 as text",
    ),
]


def test_bad_rows_are_all_told_with_row_and_reason(tmp_path: Path) -> None:
    cells = [*(row["messages"] for row in many(ROWS["messages"])), *(cell for cell, _, _ in BAD)]
    rows = [{"messages": cell if cell == "no list" else json.dumps(cell)} for cell in cells]
    report = loaded(tmp_path, rows).report
    told = {problem.where.row or 0: problem for problem in report.problems}
    assert sorted(told) == list(range(31, 31 + len(BAD)))
    for row, (_, _, expected) in enumerate(BAD, start=31):
        assert told[row].expected.startswith(expected)
    kinds = {kind for _, kind, _ in BAD}
    assert kinds <= {found.kind for found in report.findings if found.severity == "error"}
    skipping = loaded(tmp_path, rows, on_bad_row="skip")
    assert skipping.report.ok
    assert sum(len(split) for split in skipping.splits.values()) == 30


def test_empty_cells_name_their_column(tmp_path: Path) -> None:
    rows = [*many(ROWS["prompt"]), {"prompt": "", "response": "a"}, {"prompt": "b", "response": None}]
    report = loaded(tmp_path, rows).report
    assert [(problem.where.row, problem.where.field) for problem in report.problems] == [
        (31, "prompt"),
        (32, "response"),
    ]


def test_turns_after_the_last_reply_are_told(tmp_path: Path) -> None:
    rows = many(ROWS["messages"])
    rows[4]["messages"].append({"role": "user", "content": "thanks"})
    found = [each for each in loaded(tmp_path, rows).report.findings if each.kind == "unanswered-turn"]
    assert [each.rows for each in found] == [(5,)]


def test_the_same_prompt_may_have_two_replies(tmp_path: Path) -> None:
    rows = [*many(ROWS["prompt"]), {"prompt": "Say 1", "response": "No"}]
    kinds = {found.kind for found in loaded(tmp_path, rows).report.findings}
    assert kinds == {"duplicate-input"}


def test_cleaning_reaches_the_turns_and_leaves_the_json_whole(tmp_path: Path) -> None:
    rows = many(
        lambda i: {"messages": [{"role": "user", "content": f"&quot;{i}"}, {"role": "assistant", "content": "y"}]}
    )
    dataset = loaded(tmp_path, rows, clean={"html": True})
    context, _ = first(dataset)
    assert context[0]["content"].startswith('"')
    assert [found.count for found in dataset.report.findings if found.kind == "cleaned"] == [30]


def test_prompts_to_reply_to(tmp_path: Path) -> None:
    file = tmp_path / "new.jsonl"
    talks = [ROWS["messages"](1), {"messages": [{"role": "user", "content": "Say 2"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in talks), encoding="utf-8")
    inputs = load_inputs(str(file), TASK, {"messages": "messages"}, clean=Clean())
    [(_, found)] = list(inputs)
    assert [turns_of(text)[-1]["content"] for text in found["messages"]] == ["Say 1", "Say 2"]


@pytest.mark.parametrize("name", ["alpaca_gpt4_en", "alpaca_gpt4_zh", "glaive_toolcall"])
def test_real_sets(name: str, shared_data: Callable[[str], Path]) -> None:
    dataset = load(str(shared_data(name)), Data(), TASK)
    assert dataset.report.ok, dataset.report.problems[:3]
    tools = {"tools": "tools"} if name == "glaive_toolcall" else {}
    assert dataset.fields == {"messages": "messages", **tools}
    assert {"train", "validation", "test"} == set(dataset.splits)


def test_tools_stand_before_all_turns(shared_data: Callable[[str], Path]) -> None:
    contexts = load(str(shared_data("glaive_toolcall")), Data(), TASK).splits["train"].inputs["messages"]
    turns = [turns_of(text) for text in contexts]
    given = [row for row in turns if row[0]["role"] == "tools"]
    assert 0 < len(given) < len(turns)
    assert all("parameters" in json.loads(row[0]["content"])[0] for row in given)
    roles = {turn["role"] for row in turns for turn in row}
    assert roles == {"tools", "user", "assistant", "tool"}, "a call is the assistant's, what it gave is the tool's"


@pytest.mark.parametrize("cell", ["{}", "[1]", "call me", '[{"name": "x"'])
def test_tools_that_cannot_be_read_are_named(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "talks.jsonl"
    rows = [{**ROWS["messages"](number), "tools": cell if number == 3 else "[]"} for number in range(1, 30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = load(str(file), Data(), TASK).report
    assert [(problem.where.row, problem.where.field, problem.expected) for problem in report.problems] == [
        (3, "tools", "a JSON list of objects, each a tool")
    ]


def test_texts_that_are_no_conversations(shared_data: Callable[[str], Path]) -> None:
    dataset = load(str(shared_data("c4_demo")), Data(), TASK)
    assert dataset.report.ok
    assert dataset.fields == {"plain_text": "text"}
    train = dataset.splits["train"]
    assert {len(turns_of(text)) for text in train.inputs["messages"]} == {1}
    assert set(train.targets) == {""}
    assert len(set(train.hashes.tolist())) == len(train)


def test_prompts_with_replies_come_before_texts(tmp_path: Path) -> None:
    file = tmp_path / "both.jsonl"
    rows = [{"text": f"all {n}", "prompt": f"say {n}", "response": str(n)} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert load(str(file), Data(), TASK).fields == {"prompt": "prompt", "response": "response"}
    named = load(str(file), Data(fields={"plain_text": "text"}), TASK)
    assert named.fields == {"plain_text": "text"}
    with pytest.raises(DataError, match="do not fit"):
        load(str(file), Data(fields={"messages": "text", "plain_text": "nothing"}), TASK)


def test_an_empty_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    rows = [{"text": f"all {n}" if n != 4 else " "} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [problem] = load(str(file), Data(), TASK).report.problems
    assert (problem.where.row, problem.where.field, problem.got) == (5, "plain_text", "nothing")


def test_a_missing_column_is_named_by_the_option_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("q\nSay 1\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_inputs(str(file), TASK)
    assert caught.value.problems[0].todo == "Say which column it is: --column prompt=COLUMN."
