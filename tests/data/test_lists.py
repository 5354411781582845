"""Queries and interactions as lists: how they are grouped and drawn, and every bad row by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.core.lists import NEW_ITEM, NEW_USER
from chainrule.core.recipe import Clean, Data
from chainrule.core.report import CheckReport
from chainrule.data.lists import candidates_of
from chainrule.data.load import Dataset, load
from chainrule.data.profiles import Sampling
from chainrule.errors import DataError
from chainrule.tasks import find_task
from chainrule.testing.data import searches, tastes, write_csv, write_json_lines

pytestmark = pytest.mark.unit
TASK = find_task("ranking")
ITEMS = [{"item_id": f"i{n}", "title": f"T{n}", "text": f"text {n}"} for n in range(12)]


def read(source: Any, *, skip: bool = False, clean: Clean | None = None, **options: Any) -> Dataset:
    spec = Data(on_bad_row="skip" if skip else "stop", clean=clean or Clean())
    return load(source, spec, TASK, options=Sampling(**options))


def message(report: CheckReport, kind: str, split: str | None = None) -> str:
    found = [each for each in report.findings if each.kind == kind and split in (None, each.split)]
    assert found, [each.kind for each in report.findings]
    return found[0].message


def folder(path: Path, **splits: list[tuple[Any, ...]]) -> Path:
    """Interactions of (user, item, rating, time), with twelve items beside them."""
    names = ("user_id", "item_id", "rating", "timestamp")
    write_csv(path / "items.csv", ITEMS)
    for split, rows in splits.items():
        write_csv(path / f"{split}.csv", [dict(zip(names, map(str, row), strict=True)) for row in rows])
    return path


# -- queries


def test_rows_of_a_query_make_one_list_wherever_they_stand(tmp_path: Path) -> None:
    rows = [("a", "x", 0), ("b", "x", 1), ("a", "y", 2), ("b", "z", 0), ("a", "z", 0.5)]
    made = [dict(zip(("question", "passage", "label"), map(str, row), strict=True)) for row in rows]
    for split in ("train", "validation"):
        write_csv(tmp_path / f"{split}.csv", made)
    dataset = read(tmp_path)
    assert dataset.fields == {"query": "question", "item": "passage", "relevance": "label"}
    train = dataset.splits["train"]
    assert list(train.inputs) == ["query", "item"]
    assert list(train.inputs["query"]) == ["a", "b"]
    assert [candidates_of(cell)[1] for cell in train.inputs["item"]] == [["x", "y", "z"], ["x", "z"]]
    assert [row.tolist() for row in train.targets.each()] == [[0, 2, 0.5], [1, 0]]
    assert train.targets.items.tolist() == [0, 1, 2, 0, 2]
    assert train.places.rows.tolist() == [1, 2]
    assert message(dataset.report, "shared-between-splits").startswith("2 rows of validation have the same query")
    told = message(dataset.report, "candidates", "train")
    assert told.startswith("train has 2 queries with 2 to 3 candidates each (5 in all, 3 of them relevant).")


def test_bad_rows_of_queries_are_named(tmp_path: Path) -> None:
    rows = searches(20)
    rows[0] |= {"relevance": -1}
    rows[2] |= {"relevance": "much"}
    rows[5] |= {"item": "  "}
    rows += [{"query": "alone", "item": "x", "relevance": 0}, {"query": "alone", "item": "x", "relevance": 1}]
    source = write_json_lines(tmp_path / "rows.jsonl", rows)
    dataset = read(source)
    assert not dataset.report.ok
    found = {str(problem) for problem in dataset.report.problems}
    for wanted in (
        "row 1, line 1, field 'relevance': expected a relevance of at least 0, got -1.",
        "row 3, line 3, field 'relevance': expected a finite number, got 'much'.",
        "row 6, line 6, field 'item': expected a text, got only white space.",
        "row 81, line 81, field 'relevance': expected a relevant item for the query, got 1 with relevance 0. Add a row "
        "with a relevance above 0, remove the rows of this query, or pass --on-bad-row skip.",
    ):
        assert any(wanted in text for text in found), (wanted, found)
    skipped = read(source, skip=True)
    skipped.require_ok()
    assert sum(len(split) for split in skipped.splits.values()) >= 19
    assert "1 row repeats a query with the same item; the first one counts" in message(
        skipped.report, "repeated-candidate"
    )


def test_queries_are_cut_whole_and_their_texts_are_cleaned(tmp_path: Path) -> None:
    rows = [row | {"item": f"<b>{row['item']}</b>"} for row in searches(40)]
    dataset = read(write_json_lines(tmp_path / "rows.jsonl", rows), clean=Clean(html=True))
    queries = [set(split.inputs["query"]) for split in dataset.splits.values()]
    assert sum(map(len, queries)) == len(set.union(*queries)) == 40
    assert "<b>" not in dataset.splits["train"].inputs["item"][0]
    assert "cleaned" in {found.kind for found in dataset.report.findings}
    source = folder(tmp_path / "films", train=[("u", "i1", 5, 1), ("u", "i2", 5, 2)], validation=[("u", "i3", 5, 3)])
    write_csv(source / "items.csv", [row | {"title": f"<i>{row['title']}</i>"} for row in ITEMS])
    assert list(read(source, clean=Clean(html=True)).splits["validation"].inputs["query"]) == ["T2; T1"]


def test_candidates_that_are_all_relevant_teach_nothing(tmp_path: Path) -> None:
    rows = [row | {"relevance": 1} for row in searches(20)]
    dataset = read(write_json_lines(tmp_path / "rows.jsonl", rows))
    assert "there is nothing to tell apart" in message(dataset.report, "one-class")


def test_columns_that_fit_neither_form(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fit the task") as caught:
        read(write_csv(tmp_path / "a.csv", [{"query": "a", "relevance": "1"}]))
    assert "a column for item" in str(caught.value.problems[0])
    with pytest.raises(DataError, match="do not fit the task") as caught:
        read(write_csv(tmp_path / "b.csv", [{"user_id": "a", "rating": "1"}]))
    assert "a column for item_id" in str(caught.value.problems[0])
    with pytest.raises(DataError, match="need the texts of the items") as caught:
        read(write_csv(tmp_path / "c.csv", [{"user_id": "a", "item_id": "1"}]))
    assert "items.csv" in caught.value.problems[0].todo


# -- interactions


def lists_of(dataset: Dataset, split: str) -> list[tuple[str, list[str], list[float]]]:
    part = dataset.splits[split]
    ids = [candidates_of(cell)[0] for cell in part.inputs["item"]]
    return list(zip(part.inputs["query"], ids, [row.tolist() for row in part.targets.each()], strict=True))


def test_a_user_is_told_by_what_he_liked_in_train_before(tmp_path: Path) -> None:
    train = [("u", "i0", 5, 10), ("u", "i1", 2, 20), ("u", "i2", 4, 30), ("u", "i3", 5, 40), ("v", "i5", 5, 5)]
    source = folder(
        tmp_path, train=train, validation=[("u", "i4", 5, 35), ("u", "i6", 4, 50)], test=[("v", "i7", 5, 9)]
    )
    write_csv(tmp_path / "users.csv", [{"user_id": "u", "age": "24", "job": "writer"}])
    dataset = read(source, history=2)
    found = lists_of(dataset, "train")
    assert [query for query, _, _ in found] == [
        "age 24, job writer",
        "T0. age 24, job writer",
        "T2; T0. age 24, job writer",
        "",
    ]
    for query, ids, relevances in found:
        assert relevances == [1, 0, 0, 0, 0]
        assert all(f"T{name[1:]}" not in query for name in ids[:1])
    ((query, ids, relevances),) = lists_of(dataset, "validation")
    assert query == "T2; T0. age 24, job writer"  # before 35, the first time of the list
    assert ids[:2] == ["i4", "i6"]
    assert relevances[:2] == [1, 1]
    assert not set(ids[2:]) & {"i0", "i1", "i2", "i3", "i4", "i6"}
    assert len(ids) == 2 + 6
    later = message(dataset.report, "time-leak")
    assert later.startswith("1 row of train is later than the first row of validation of the same user (1 of 1 users)")
    assert message(dataset.report, "positives", "train").startswith(
        "4 of 5 rows of train are positive: a rating of at least 4 counts as liked (task.options.positive)."
    )


def test_what_is_drawn_is_never_rated_and_follows_the_seed(tmp_path: Path) -> None:
    source = tastes(tmp_path)
    first, again, other = (read(source, seed=seed, candidates=3) for seed in (0, 0, 1))
    rated: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for line in (source / f"{split}.csv").read_text(encoding="utf-8").splitlines()[1:]:
            user, item, *_ = line.split(",")
            rated.setdefault(user, set()).add(item)
    for split, part in first.splits.items():
        assert lists_of(first, split) == lists_of(again, split)
        for user, (_, ids, relevances) in zip(part.inputs["user"], lists_of(first, split), strict=True):
            assert len(ids) == len(set(ids)) == (5 if split == "train" else 4)
            assert relevances == [1.0] + [0.0] * (len(ids) - 1)
            assert ids[0] in rated[user]
            assert not set(ids[1:]) & rated[user]
    assert lists_of(first, "test") != lists_of(other, "test")
    everything = read(source, candidates=None)
    assert {len(ids) for _, ids, _ in lists_of(everything, "test")} == {21}  # the liked one, and all 20 unrated
    assert "and all items that he has rated in no split" in message(everything.report, "candidates", "test")


def test_a_single_file_is_cut_by_time(tmp_path: Path) -> None:
    rows = [(f"u{n % 4}", f"i{n % 5}", 5 - (n % 3), f"2026-01-{n + 1:02}") for n in range(20)]
    folder(tmp_path, ratings=[rows[n] for n in np.random.default_rng(0).permutation(20)])
    dataset = read(tmp_path / "ratings.csv", skip=True)
    assert message(dataset.report, "cut") == (
        "The rows were cut by time, the latest rows held out: 16 train, 2 validation, 2 test."
    )
    assert dataset.cut is None
    assert list(dataset.splits) == ["train", "validation", "test"]


def test_new_users_and_items_are_marked(tmp_path: Path) -> None:
    train = [("u", "i0", 5, 1), ("u", "i1", 5, 2), ("w", "i0", 5, 1)]
    source = folder(tmp_path, train=train, validation=[("u", "i2", 5, 9)], test=[("v", "i0", 5, 9), ("w", "i9", 5, 9)])
    dataset = read(source)
    assert dataset.splits["test"].targets.cold[0] == NEW_USER
    cold = dataset.splits["validation"].targets.cold
    assert cold[0] == NEW_ITEM
    assert message(dataset.report, "cold-start", "test").startswith("Cold start: 1 user and 1 liked item of test")
    assert message(dataset.report, "no-history", "test").startswith("1 list of test has no item that the user liked")


def test_bad_interactions_are_named(tmp_path: Path) -> None:
    train = [
        ("u", "i0", 5, 1),
        ("", "i1", 5, 1),
        ("u", "i99", 5, 1),
        ("u", "i3", "good", 1),
        ("u", "i4", 5, "noon"),
        ("v", "i1", 2, 1),
        ("v", "i2", 3, 1),
        ("u", "i0", 4, 7),
    ]
    source = folder(tmp_path, train=train, validation=[("u", "i5", 5, 9)], test=[("u", "i0", 5, 9)])
    dataset = read(source)
    found = {str(problem) for problem in dataset.report.problems}
    for wanted in (
        "row 2, line 3, field 'user': expected an id, got nothing.",
        "row 3, line 4, field 'item_id': expected an item with a text in the table of items, got 'i99'.",
        "row 4, line 5, field 'rating': expected a finite number, got 'good'.",
        "row 5, line 6, field 'timestamp': expected a time, got 'noon'.",
        "row 6, line 7, field 'rating': expected a row with a rating of at least 4, got 2 of the user 'v', the highest "
        "rated 3. Lower task.options.positive, remove the rows of this user, or pass --on-bad-row skip.",
    ):
        assert any(wanted in text for text in found), (wanted, found)
    skipped = read(source, skip=True)
    skipped.require_ok()
    assert len(skipped.splits["train"]) == 1
    repeated = [found for found in skipped.report.findings if found.kind == "repeated-interaction"]
    assert [(each.split, each.rows) for each in repeated] == [("train", (1,)), ("test", (1,))]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("i0", ""), ("i0", "b")], "expected a text, got none for 'i0'"),
        ([("i0", "a"), ("i0", "b")], "expected an id of its own, got 'i0'"),
        ([("", "a")], "expected an id, got nothing"),
    ],
)
def test_items_without_text_or_name_are_named(rows: list[tuple[str, str]], expected: str, tmp_path: Path) -> None:
    source = folder(tmp_path, train=[("u", "i1", 5, 1)], validation=[("u", "i2", 5, 2)])
    write_csv(source / "items.csv", [*ITEMS[1:], *({"item_id": a, "title": "", "text": b} for a, b in rows)])
    dataset = read(source)
    assert [str(problem) for problem in dataset.report.problems if expected in str(problem)]


def test_ratings_of_another_scale_want_a_threshold(tmp_path: Path) -> None:
    source = folder(tmp_path, train=[("u", "i1", 9, 1), ("u", "i2", 6, 2)], validation=[("u", "i3", 8, 3)])
    with pytest.raises(DataError, match="not known which ratings") as caught:
        read(source)
    assert "task.options.positive=7" in caught.value.problems[0].todo
    assert len(read(source, positive=7).splits["train"]) == 1


def test_without_ratings_and_times_everything_counts(tmp_path: Path) -> None:
    source = folder(tmp_path)
    rows = [{"userid": f"u{n % 3}", "itemid": f"i{n % 12}"} for n in range(30)]
    write_csv(source / "clicks.csv", rows)
    dataset = read(source / "clicks.csv")
    assert dataset.fields == {"user": "userid", "item_id": "itemid"}
    assert "cut by hashes of user and item" in message(dataset.report, "cut")
    assert "every row counts as liked" in message(dataset.report, "positives", "train")
    (source / "items.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="Cannot read the data") as caught:
        read(source / "clicks.csv")
    assert "one file called items" in str(caught.value.problems[0])
    query, ids, _ = lists_of(dataset, "train")[0]
    assert f"T{ids[0][1:]}" not in query.split("; ")  # never what the list asks for
    assert query


def test_a_user_who_has_rated_everything_has_nothing_to_compare_with(tmp_path: Path) -> None:
    train = [("u", f"i{n}", 5, n) for n in range(11)]
    dataset = read(folder(tmp_path, train=train, validation=[("u", "i11", 5, 20)]))
    assert {found.kind for found in dataset.report.findings if found.severity == "error"} >= {"no-negative"}
    assert "an item that the user has not rated" in str(dataset.report.problems[0])


def test_interactions_need_a_train_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        read(folder(tmp_path, test=[("u", "i1", 5, 1)]))


def test_cells_hold_ids_only_where_items_have_them() -> None:
    assert candidates_of(json.dumps(["a", "b"])) == (["a", "b"], ["a", "b"])
    assert candidates_of(json.dumps([["1", "a"]])) == (["1"], ["a"])
