"""Data sets for cross-validation: each row is held out once, and nothing like it is seen then."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.core.report import CheckReport
from chainrule.core.task import FieldKind
from chainrule.data.folds import fold_datasets
from chainrule.data.load import Dataset, Split
from chainrule.data.split import Cut, hash_texts
from chainrule.data.table import Places
from chainrule.data.texts import Texts
from chainrule.errors import DataError

pytestmark = pytest.mark.unit

NAMES = ("train", "validation", "test")
LABELS = ("bad", "fair", "good")


def dataset(rows: list[tuple[int, int, int]], *, was_cut: bool = True, kind: FieldKind = "class") -> Dataset:
    """Rows of (text, label, split)."""
    splits = {}
    for part, name in enumerate(NAMES):
        numbers = [number for number, row in enumerate(rows, start=1) if row[2] == part]
        texts = [f"text {rows[number - 1][0]}" for number in numbers]
        labels = np.array([rows[number - 1][1] for number in numbers], dtype=np.int64)
        targets = {"class": labels, "classes": (labels[:, None] >= np.arange(3)).astype(np.float32)}
        places = Places("rows.csv" if was_cut else f"{name}.csv", np.array(numbers, dtype=np.int64))
        splits[name] = Split(
            places, {"text": Texts.of(texts)}, targets.get(kind, labels.astype(np.float64)), hash_texts([texts])
        )
    report = CheckReport(
        task="text-classification", source="rows.csv", fields={}, splits={}, labels=LABELS, findings=()
    )
    cut = Cut(None, {name: part.hashes for name, part in splits.items()}) if was_cut else None
    return Dataset(splits, LABELS, {}, report, cut, {})


def plain(count: int) -> list[tuple[int, int, int]]:
    return [(number, number % 3, min(2, number % 5)) for number in range(count)]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.integers(0, 2)), min_size=4, max_size=90),
    st.integers(2, 5),
    st.sampled_from(["class", "classes", "number"]),
    st.integers(0, 99),
)
def test_each_row_is_held_out_once_from_all_that_is_like_it(
    rows: list[tuple[int, int, int]], count: int, kind: FieldKind, seed: int
) -> None:
    try:
        made = fold_datasets(dataset(rows, kind=kind), kind, count, 0.2, seed)
    except DataError:
        return
    held = [number for fold in made for number in fold.splits["test"].places.rows.tolist()]
    assert sorted(held) == list(range(1, len(rows) + 1))
    for fold in made:
        assert all(len(part) for part in fold.splits.values())
        together = np.concatenate([part.places.rows for part in fold.splits.values()])
        assert sorted(together.tolist()) == list(range(1, len(rows) + 1))
        seen, chosen_by, own = (set(fold.splits[name].inputs["text"]) for name in NAMES)
        assert not seen & own
        assert not chosen_by & own
        assert not seen & chosen_by
        if kind == "class":
            assert set(fold.splits["train"].targets.tolist()) == {label for _, label, _ in rows}


def test_rows_keep_what_is_true_of_them() -> None:
    rows = plain(60)
    for fold in fold_datasets(dataset(rows), "class", 4, 0.1, 0):
        for part in fold.splits.values():
            for place, text, target in zip(part.places.rows, part.inputs["text"], part.targets, strict=True):
                assert (text, target) == (f"text {rows[place - 1][0]}", rows[place - 1][1])


def test_a_test_split_of_its_own_stays_apart() -> None:
    rows = plain(60)
    made = fold_datasets(dataset(rows, was_cut=False), "class", 3, 0.1, 0)
    held = sorted(number for fold in made for number in fold.splits["test"].places.rows.tolist())
    assert held == [number for number, row in enumerate(rows, start=1) if row[2] < 2]
    assert made[0].splits["test"].places.file is None


@pytest.mark.parametrize(
    ("rows", "count", "expected", "got", "todo"),
    [
        (plain(8), 9, "at least 9 different rows", "8", "Choose at most --folds 8, or add rows."),
        (
            plain(14),
            5,
            "at least 5 different rows of every label",
            "4 of 'good'",
            "Choose at most --folds 4, or add rows.",
        ),
        (
            [*[(n, n % 2, min(2, n % 5)) for n in range(30)], *[(99, 2, 0)] * 9],
            2,
            "at least 2 different rows of every label",
            "1 of 'good'",
            "Add rows, or leave --folds out.",
        ),
        (
            [(n, n % 2, n % 3) for n in range(4)],
            2,
            "rows enough to cut validation out of the other folds, with every label left to train on",
            "2 different rows outside fold 1",
            "Add rows, or choose another number of folds.",
        ),
    ],
)
def test_too_few_rows(rows: list[tuple[int, int, int]], count: int, expected: str, got: str, todo: str) -> None:
    with pytest.raises(DataError, match="There are too few rows for so many folds") as caught:
        fold_datasets(dataset(rows), "class", count, 0.1, 0)
    (problem,) = caught.value.problems
    assert (problem.expected, problem.got, problem.todo) == (expected, got, todo)
    assert (problem.where.file, problem.where.field) == ("rows.csv", "training.folds")
