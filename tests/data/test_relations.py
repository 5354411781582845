"""Pairs, triplets and labelled texts: which columns are taken, what is wrong with a row, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.core.recipe import Data
from chainrule.data.fields import find_fields
from chainrule.data.load import Dataset, load, load_labelled
from chainrule.data.stream import load_inputs
from chainrule.errors import DataError
from chainrule.tasks import find_task
from chainrule.testing.data import sentences, write_csv

pytestmark = pytest.mark.unit
TASK, SCORED = find_task("embedding"), find_task("sentence-similarity")


def pairs(count: int = 30) -> list[dict[str, str]]:
    return [{"question": f"what is {n}", "context": f"it is {n}"} for n in range(count)]


def loaded(path: Path, rows: list[dict[str, str]], task: Any = TASK, **settings: Any) -> Dataset:
    return load(str(write_csv(path / "rows.csv", rows)), Data(**settings), task)


@pytest.mark.parametrize(
    ("columns", "named", "found"),
    [
        (["question", "context", "id"], {}, {"anchor": "question", "positive": "context"}),
        (["Query", "passage", "negative"], {}, {"anchor": "Query", "positive": "passage", "negative": "negative"}),
        (["text", "intent"], {}, {"text": "text", "label": "intent"}),
        (["text", "label", "question", "answer"], {"text": "text"}, {"text": "text", "label": "label"}),
        (["text", "label", "q", "answer"], {"anchor": "q"}, {"anchor": "q", "positive": "answer"}),
    ],
)
def test_columns(columns: list[str], named: dict[str, str], found: dict[str, str]) -> None:
    assert find_fields(columns, TASK, named=named) == found


def test_columns_that_say_too_much_or_too_little() -> None:
    with pytest.raises(
        DataError, match="expected columns for anchor and positive or columns for text and label, got both"
    ):
        find_fields(["text", "label", "question", "answer"], TASK, named={})
    with pytest.raises(DataError, match="--task sentence-similarity"):
        find_fields(["sentence1", "sentence2", "score"], TASK, named={})
    with pytest.raises(DataError, match="a column of its own for each field, got a, a"):
        find_fields(["a"], TASK, named={"anchor": "a", "positive": "a"})
    assert find_fields(["sentence1", "sentence2", "score"], SCORED, named={}) == {
        "text_a": "sentence1",
        "text_b": "sentence2",
        "score": "score",
    }


def test_of_both_forms_that_is_taken_which_was_trained_on() -> None:
    columns, recorded = ["text", "label", "question", "answer"], {"anchor": "question", "positive": "answer"}
    assert find_fields(columns, TASK, named={}, recorded=recorded) == recorded
    assert find_fields(["text", "label"], TASK, named={}, recorded=recorded) == {"text": "text", "label": "label"}


def test_the_column_that_becomes_vectors() -> None:
    def column(columns: list[str], task: Any = TASK, **known: dict[str, str]) -> str:
        return find_fields(columns, task, with_target=False, **({"named": {}} | known))["text"]  # type: ignore[arg-type]

    assert column(["id", "question", "answer"], recorded={"anchor": "question", "positive": "answer"}) == "question"
    assert column(["id", "question", "answer"], named={"positive": "answer"}) == "answer"
    assert column(["id", "text"]) == "text"
    assert column(["x", "sentence2"], SCORED, named={"text": "x"}) == "x"
    with pytest.raises(DataError, match="--column text=COLUMN"):
        column(["id"])


def test_equal_texts_have_equal_numbers(tmp_path: Path) -> None:
    rows = [*pairs(), {"question": "what is 3", "context": "three"}, {"question": "how many", "context": "it is 4"}]
    dataset = loaded(tmp_path, rows)
    assert dataset.report.ok
    assert dataset.labels == ()
    everything = {
        row: known
        for part in dataset.splits.values()
        for row, known in zip(part.places.rows, part.targets, strict=True)
    }
    assert everything[4][0] == everything[31][0] != everything[5][0]
    assert everything[5][1] == everything[32][1] != everything[31][1]
    kinds = {found.kind: found for found in dataset.report.findings}
    assert set(kinds) <= {"repeated-positive"}


def test_findings_of_pairs(tmp_path: Path) -> None:
    rows = [*pairs(60), *({"question": f"ask {n}", "context": "it is 1"} for n in range(20))]
    rows += [{"question": f"same {n}", "context": f"same {n}"} for n in range(20)]
    findings = {(found.kind, found.split): found for found in loaded(tmp_path, rows).report.findings}
    assert findings["repeated-positive", "train"].severity == "info"
    message = findings["same-texts", "train"].message
    assert message.endswith("rows of train have the same text on both sides.")


def test_a_negative_that_is_the_positive_is_refused_by_row(tmp_path: Path) -> None:
    rows = [{**row, "negative": "no"} for row in pairs()]
    rows[6]["negative"] = rows[6]["context"]
    with pytest.raises(DataError, match=r"row 7.*expected another text than the positive, got the same") as caught:
        loaded(tmp_path, rows).require_ok()
    assert "same text as positive and as negative" in str(caught.value)
    skipped = loaded(tmp_path, rows, on_bad_row="skip")
    assert skipped.report.ok
    assert sum(map(len, skipped.splits.values())) == 29
    assert all(part.targets.shape[1] == 3 for part in skipped.splits.values())


def test_empty_texts_are_refused(tmp_path: Path) -> None:
    rows = pairs()
    rows[3]["context"] = " "
    with pytest.raises(DataError, match=r"row 4.*expected a text, got only white space"):
        loaded(tmp_path, rows).require_ok()


def test_labels_are_numbers_by_name_and_new_ones_may_come(tmp_path: Path) -> None:
    dataset = loaded(tmp_path, sentences(60))
    train = dataset.splits["train"]
    assert dataset.labels == ("negative", "positive")
    assert train.targets.dtype == np.int64
    assert len(np.unique(train.targets)) == 2
    new = write_csv(tmp_path / "new.csv", sentences(30, labels=("positive", "strange")))
    known: dict[str, Any] = {
        "fields": dataset.fields,
        "labels": dataset.labels,
        "recorded_cut": None,
        "known_hashes": {},
    }
    rows = load_labelled(str(new), None, Data(), TASK, **known)
    assert len(rows.split) == 30
    assert len(set(rows.split.targets) & set(train.targets)) == 1


def test_one_label_teaches_nothing(tmp_path: Path) -> None:
    report = loaded(tmp_path, sentences(40, labels=("a", "a"))).report
    assert not report.ok
    assert any(found.kind == "one-class" for found in report.findings)
    rare = loaded(tmp_path, [*sentences(60), {"text": "it is rare", "label": "rare"}]).report
    assert any(found.kind == "rare-class" for found in rare.findings)


def test_rows_to_embed_have_one_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "new.csv", pairs(5))
    inputs = load_inputs(str(path), TASK, {"anchor": "question", "positive": "context"})
    ((_, texts),) = list(inputs)
    assert list(texts) == ["text"]
    assert texts["text"][0] == "what is 0"
