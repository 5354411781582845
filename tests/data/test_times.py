"""Times of rows: given splits whose training rows are later than what stands for the future."""

from __future__ import annotations

from pathlib import Path

import pytest

import chainrule
from chainrule.data.times import seconds_of
from chainrule.testing.data import sentences, write_csv

pytestmark = pytest.mark.unit


def write(folder: Path, column: str, times: dict[str, list[str]]) -> Path:
    for split, cells in times.items():
        rows = [row | {column: cell} for row, cell in zip(sentences(len(cells), seed=len(cells)), cells, strict=True)]
        write_csv(folder / f"{split}.csv", rows)
    return folder


def leaks(folder: Path) -> list[chainrule.core.report.Finding]:
    report = chainrule.check(folder, task="text-classification")
    return [finding for finding in report.findings if finding.kind == "time-leak"]


def days(first: int, count: int) -> list[str]:
    return [f"2026-03-{first + day:02d}" for day in range(count)]


def test_rows_from_the_future_are_told(tmp_path: Path) -> None:
    times = {"train": days(1, 12), "validation": days(9, 10), "test": days(20, 11)}
    (found,) = leaks(write(tmp_path, "date", times))
    assert found.severity == "warning"
    assert found.message == "3 rows of train are later than the first row of validation (date 2026-03-09)."
    assert found.rows == (10, 11, 12)
    assert (
        found.todo == "Where the model is to be used on what comes after, cut by time: else the score may be too good."
    )


def test_splits_in_their_order_and_columns_that_are_no_times_are_left_alone(tmp_path: Path) -> None:
    ordered = {"train": days(1, 10), "validation": days(11, 8), "test": days(20, 8)}
    assert leaks(write(tmp_path / "ordered", "date", ordered)) == []
    durations = {"train": ["30", "20"] * 6, "validation": ["10"] * 8, "test": ["5"] * 9}
    assert leaks(write(tmp_path / "durations", "time", durations)) == []
    huge = {"train": ["1e300"] * 10, "validation": ["1e299"] * 8, "test": ["1e298"] * 9}
    assert leaks(write(tmp_path / "huge", "date", huge)) == []
    words = {"train": ["soon"] * 10, "validation": ["now"] * 8, "test": ["late"] * 9}
    assert leaks(write(tmp_path / "words", "date", words)) == []


def test_numbers_and_dates_are_seconds() -> None:
    assert seconds_of("880000000") == 880000000.0
    assert seconds_of("1970-01-02") == 86400.0
    assert seconds_of("1970-01-02T00:00:00+01:00") == 82800.0
    for cell in ("soon", "", "nan", "inf"):
        with pytest.raises(ValueError):
            seconds_of(cell)
