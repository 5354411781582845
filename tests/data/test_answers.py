"""Answers in all the forms that data sets have them in, and every bad row by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.core.recipe import Clean, Data
from chainrule.data.answers import read_answers
from chainrule.data.load import Dataset, load
from chainrule.data.table import Table
from chainrule.errors import DataError
from chainrule.tasks import find_task
from chainrule.testing.data import write_csv, write_json_lines

pytestmark = pytest.mark.unit
TASK = find_task("question-answering")
CONTEXT = "Ann lives in 🙂 Łódź, not in Rome."


def read(cell: Any, **more: Any) -> tuple[list[str], list[Any]]:
    """The texts of a row's answers, and its flaws."""
    table = Table(
        "x.jsonl",
        pa.table({name: pa.array([value]) for name, value in {"answers": cell, **more}.items()}),
        np.array([7]),
    )
    found, flaws = read_answers(table, "answers", "answers", table_texts([CONTEXT]))
    return next(iter(found.texts(found.spans))), flaws


def table_texts(texts: list[str]) -> Any:
    return Table(None, pa.table({"context": texts}), np.arange(len(texts))).texts("context")


@pytest.mark.parametrize(
    ("cell", "more", "expected"),
    [
        ({"text": ["Ann", "Łódź"], "answer_start": [0, 15]}, {}, ["Ann", "Łódź"]),
        ('{"text": ["Łódź"], "answer_start": [15]}', {}, ["Łódź"]),
        ([{"text": "Rome", "start": 28}], {}, ["Rome"]),
        ('[{"text": "Rome", "answer_start": 28}]', {}, ["Rome"]),
        ({"text": "Rome", "answer_start": 28}, {}, ["Rome"]),
        ("Łódź", {"answer_start": "15"}, ["Łódź"]),
        ("Łódź", {"answer_start": 15.0}, ["Łódź"]),
        ({"text": [], "answer_start": []}, {}, []),
        ("[]", {}, []),
        ("", {"is_impossible": "True"}, []),
        (None, {"is_impossible": True}, []),
        ("Ann", {"answer_start": 0, "is_impossible": False}, ["Ann"]),
    ],
)
def test_all_forms_come_to_one(cell: Any, more: dict[str, Any], expected: list[str]) -> None:
    found, flaws = read(cell, **more)
    assert found == expected
    assert flaws == []


@pytest.mark.parametrize(
    ("cell", "more", "told"),
    [
        ("Łódź", {"answer_start": 17}, "the answer's text at its place, got 'dź, ' at 17 instead of 'Łódź'."),
        ("Łódź", {"answer_start": 17}, "It stands at 15. Count characters, not bytes or tokens, from 0; or correct"),
        ("in", {"answer_start": 0}, "got 'An' at 0 instead of 'in'. Count characters"),
        ("Ann", {"answer_start": 99}, "a beginning inside the context's 33 characters, got 99 ('Ann', number 1)."),
        ("Ann", {"answer_start": -1}, "got -1 ('Ann', number 1)"),
        (" ", {"answer_start": 3}, "an answer with text, got only white space. Remove it, or write [] for no answer."),
        ({"text": [""], "answer_start": [0]}, {}, "got an empty text"),
        ("Ann", {}, "an answer's text and where it begins, got no beginning of 'Ann'. Write each answer with"),
        ("Ann", {"answer_start": "x"}, "got no whole number ('x') for 'Ann'"),
        ({"text": ["Ann"], "answer_start": [0, 4]}, {}, "a beginning for each text, got 1 texts and 2 beginnings"),
        ("", {}, "an answer, got nothing. Give the answer, or say that there is none: [], or true in a column"),
        ("Ann", {"answer_start": 0, "is_impossible": True}, "got 'Ann' although is_impossible is true"),
    ],
)
def test_a_bad_row_is_named(cell: Any, more: dict[str, Any], told: str) -> None:
    found, (flaw,) = read(cell, **more)
    assert found == []
    assert flaw.kind == ("missing-label" if cell == "" else "bad-answers")
    assert flaw.row == 7
    assert "row 7" in str(flaw.problem)
    assert told in str(flaw.problem)


def test_white_space_at_the_ends_is_left_out_and_told() -> None:
    found, (flaw,) = read(" lives ", answer_start=3)
    assert found == ["lives"]
    assert (flaw.kind, flaw.problem) == ("span-white-space", None)


@given(st.lists(st.text(min_size=1, max_size=6).filter(lambda text: text == text.strip()), min_size=1, max_size=5))
def test_what_was_cut_out_of_a_context_is_found_there(words: list[str]) -> None:
    context = " ".join(words)
    starts = [len(" ".join([*words[:place], ""])) for place in range(len(words))]
    table = Table("x", pa.table({"answers": [{"text": words, "answer_start": starts}]}), np.array([1]))
    found, flaws = read_answers(table, "answers", "answers", table_texts([context]))
    assert flaws == []
    assert list(found.texts(found.spans)) == [words]


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Every fourth without an answer."""
    found: list[Any] = [
        {"text": ["Ann"], "answer_start": [0]} if n % 4 else {"text": [], "answer_start": []} for n in range(count)
    ]
    return [{"question": f"who {n}?", "context": f"Ann {n}", "answers": answers} for n, answers in enumerate(found)]


def loaded(path: Path, **more: Any) -> Dataset:
    return load(path, Data(**more), TASK)


def test_check_tells_how_many_have_no_answer_and_how_many_several(tmp_path: Path) -> None:
    many = rows()
    many[1]["answers"] = {"text": ["Ann", "Ann 1"], "answer_start": [0, 0]}
    write_json_lines(tmp_path / "train.jsonl", many)
    write_json_lines(tmp_path / "test.jsonl", [{**many[1], "question": "else?"}])
    dataset = loaded(tmp_path)
    told = {(found.kind, found.split): found.message for found in dataset.report.findings}
    assert told[("several-answers", "test")] == "1 row of test has several right answers: the most similar one counts."
    assert "the first of them is learned" in told[("several-answers", "train")]
    counts = {name: len(part) - int(part.targets.answered.sum()) for name, part in dataset.splits.items()}
    assert counts == {"train": 9, "validation": 1, "test": 0}
    assert told[("no-answer", "validation")] == "1 row of validation (25.0 %) has no answer in the context."
    assert dataset.report.labels == ()


def test_csv_says_the_same(tmp_path: Path) -> None:
    flat = [
        {"question": f"q{n}", "passage": f"{n} Ann", "answer": "Ann", "answer_start": str(len(f"{n} "))}
        for n in range(20)
    ]
    dataset = loaded(write_csv(tmp_path / "x.csv", flat))
    assert dataset.fields == {"question": "question", "context": "passage", "answers": "answer"}
    train = dataset.splits["train"].targets
    assert set(map(tuple, train.texts(train.spans))) == {("Ann",)}


def test_empty_questions_and_contexts_are_named(tmp_path: Path) -> None:
    bad = [
        {**row, "question": " "} if n == 2 else {**row, "context": ""} if n == 5 else row
        for n, row in enumerate(rows())
    ]
    path = write_json_lines(tmp_path / "x.jsonl", bad)
    report = loaded(path).report
    assert {(problem.where.row, problem.where.field, problem.got) for problem in report.problems} == {
        (3, "question", "only white space"),
        (6, "context", "an empty cell"),
    }
    skipped = loaded(path, on_bad_row="skip")
    assert sum(map(len, skipped.splits.values())) == 38


def test_cleaning_that_moves_characters_is_refused(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "x.jsonl", rows())
    for name in ("html", "unicode_nfkc", "white_space"):
        with pytest.raises(DataError, match="Texts with marked pieces cannot be cleaned"):
            loaded(path, clean=Clean(**{name: True}))
    assert sum(map(len, loaded(path, clean=Clean(exact_duplicates=True)).splits.values())) == 40


def test_rows_without_any_answer_teach_nothing(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "x.jsonl", [{**row, "answers": "[]"} for row in rows()])
    (problem,) = loaded(path).report.problems
    assert (problem.expected, problem.got) == ("rows with an answer", "none")


def test_the_same_question_with_other_answers_is_told(tmp_path: Path) -> None:
    twice = [{**row, "answers": json.dumps(row["answers"])} for row in [*rows(), rows()[1]]]
    twice[-1]["answers"] = '[{"text": "1", "start": 4}]'
    report = loaded(write_json_lines(tmp_path / "x.jsonl", twice)).report
    assert any("with different answers" in found.message for found in report.findings)
