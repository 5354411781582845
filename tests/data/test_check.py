"""The finding about rows longer than the model reads."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.data.check import length_finding
from chainrule.data.flaws import Flaw, summarise
from chainrule.data.table import Places

pytestmark = pytest.mark.unit


def test_long_rows_are_counted_with_what_is_lost() -> None:
    places = Places("a.csv", np.array([2, 3, 5, 8]))
    assert length_finding(np.array([3, 10, 10, 1]), 10, "train", places) is None
    found = length_finding(np.array([3, 30, 12, 5]), 10, "train", places)
    assert found is not None
    assert (found.kind, found.severity, found.rows, found.count) == ("too-long", "warning", (3, 5), 2)
    assert found.message == (
        "2 rows of train (50.0 %) are longer than 10 tokens; the longest has 30. "
        "22 tokens (44.0 % of all) will be cut off."
    )
    assert found.todo == "Raise --max-length if the model allows it (30 covers every row)."


def test_one_row_and_many_are_worded_rightly() -> None:
    def message(kind: str, rows: int) -> str:
        flaws = [Flaw(kind, row) for row in range(1, rows + 1)]
        return summarise(flaws, split="train", file=None, on_bad_row="stop")[0][0].message

    assert message("no-label", 1) == "1 row of train has no label at all, which is allowed here."
    assert message("no-label", 1200) == "1,200 rows of train have no label at all, which is allowed here."
    assert message("replacement-character", 1).startswith("1 row of train holds U+FFFD")
    assert message("blank-line", 1) == "1 line of train is blank (not counted as rows)."
