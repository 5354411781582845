"""Ragged lists: chosen, joined, stored and padded as rows of numbers would be."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.core.lists import Lists, starts_of
from chainrule.core.spans import as_arrays, from_arrays, together

pytestmark = pytest.mark.unit
ROWS = [[1.0, 0.0, 2.0], [], [3.0], [0.0, 1.0]]


def made(rows: list[list[float]]) -> Lists:
    flat = np.array([n for row in rows for n in row], np.float32)
    items, cold = np.arange(len(flat), dtype=np.int32), (flat > 1).astype(np.uint8)
    return Lists(starts_of(np.array([len(row) for row in rows])), flat, items, cold)


def rows_of(lists: Lists) -> list[list[float]]:
    return [row.tolist() for row in lists.each()]


def test_rows_are_chosen_and_joined_with_all_that_belongs_to_them() -> None:
    lists = made(ROWS)
    chosen = lists[np.array([3, 1, 0])]
    assert rows_of(chosen) == [ROWS[3], ROWS[1], ROWS[0]]
    assert chosen.items is not None
    assert chosen.items.tolist() == [4, 5, 0, 1, 2]
    both = together([chosen, lists])
    assert rows_of(both) == [ROWS[3], ROWS[1], ROWS[0], *ROWS]
    assert both.rows.tolist() == [0, 0, 2, 2, 2, 3, 3, 3, 5, 6, 6]
    assert rows_of(lists[np.zeros(0, np.int64)]) == []


@pytest.mark.parametrize("scores", [False, True])
def test_stored_and_read_again(scores: bool) -> None:
    lists = made(ROWS).scored(np.arange(6)) if scores else made(ROWS)
    arrays = as_arrays("values", lists)
    assert len(arrays) == (2 if scores else 4)
    again = from_arrays("values", arrays)
    assert isinstance(again, Lists)
    assert rows_of(again) == rows_of(lists)
    assert (again.items is None) == scores
    assert rows_of(together([again, made(ROWS)])) == rows_of(lists) + ROWS


def test_padded_to_the_longest() -> None:
    assert made(ROWS).padded(-1).tolist() == [[1, 0, 2], [-1, -1, -1], [3, -1, -1], [0, 1, -1]]
    assert made([]).padded(-1).shape == (0, 0)
