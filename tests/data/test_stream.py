"""Rows to predict: checked as a whole, handed out in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from chainrule.core.recipe import Clean
from chainrule.data.stream import load_inputs
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit

TASK = find_task("text-classification")


def test_rows_come_in_pieces_with_all_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("id,review\n" + "".join(f"{n},text {n}\n" for n in range(10)), encoding="utf-8")
    inputs = load_inputs(path, TASK, {"text": "review", "label": "stars"}, 4)
    assert (inputs.rows, inputs.columns, inputs.fields) == (10, ("id", "review"), {"text": "review"})
    for _ in range(2):
        pieces = list(inputs)
        assert [len(table) for table, _ in pieces] == [4, 4, 2]
        assert [text for _, texts in pieces for text in texts["text"]] == [f"text {n}" for n in range(10)]
        assert pieces[1][0].texts("id") == ["4", "5", "6", "7"]


def test_every_bad_row_is_named_before_anything_is_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text\n" + "a\n" * 5000 + '""\n' + "b\n" * 5000 + "c,d\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        load_inputs(path, TASK, {"text": "text"}, 100)
    assert sorted(problem.where.row or 0 for problem in raised.value.problems) == [5001, 10002]
    skipped = load_inputs(path, TASK, {"text": "text"}, 100, on_bad_row="skip")
    assert {found.message for found in skipped.findings} == {
        "1 row was skipped: it has no text.",
        "1 row was skipped: it has more or fewer cells than the header.",
    }
    assert skipped.rows == sum(len(table) for table, _ in skipped) == 10_000


def test_keys_that_come_late_are_columns_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    rows = [{"text": f"t{n}", **({"late": n} if n > 3 else {})} for n in range(6)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    tables = [table for table, _ in load_inputs(path, TASK, {"text": "text"}, 2)]
    assert [table.names for table in tables] == [["text", "late"]] * 3
    assert tables[0].texts("late") == [None, None]
    assert tables[2].texts("late") == ["4", "5"]


def test_frames_can_be_predicted_and_are_cleaned_as_in_training() -> None:
    frame = pd.DataFrame({"text": ["<b>a</b>", "b"]})
    inputs = load_inputs(frame, TASK, {"text": "text"}, clean=Clean(html=True))
    assert [texts for _, texts in inputs] == [{"text": ["a", "b"]}]


def test_a_pair_model_wants_a_pair_and_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text\na\n", encoding="utf-8")
    with pytest.raises(DataError, match="do not fit the task"):
        load_inputs(path, TASK, {"text_a": "text_a", "text_b": "text_b"})
    path.write_text("text\n", encoding="utf-8")
    with pytest.raises(DataError, match="it has no rows"):
        load_inputs(path, TASK, {"text": "text"})
