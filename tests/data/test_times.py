"""Times of rows: given splits whose training rows are later than what stands for the future."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import chainrule
from chainrule.data.split import cut_by_time, hash_texts
from chainrule.data.times import seconds_of
from chainrule.errors import DataError
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


def test_the_order_of_a_named_column_is_looked_at_too(tmp_path: Path) -> None:
    years = {"train": [str(1900 + year) for year in range(12)], "test": ["1908"] * 9, "validation": ["1990"] * 8}
    report = chainrule.check(
        write(tmp_path, "year", years), task="text-classification", settings={"data.time_column": "year"}
    )
    (found,) = (finding.message for finding in report.findings if finding.kind == "time-leak")
    assert found == "3 rows of train are later than the first row of test (year 1908)."


def test_numbers_and_dates_are_seconds() -> None:
    assert seconds_of("880000000") == 880000000.0
    assert seconds_of("1970-01-02") == 86400.0
    assert seconds_of("1970-01-02T00:00:00+01:00") == 82800.0
    for cell in ("soon", "", "nan", "inf"):
        with pytest.raises(ValueError):
            seconds_of(cell)


def single(folder: Path, cells: list[str], column: str = "date") -> Path:
    rows = [row | {column: cell} for row, cell in zip(sentences(len(cells), seed=1), cells, strict=True)]
    return write_csv(folder / "rows.csv", rows)


def found_of(source: Path, kind: str, **settings: Any) -> tuple[chainrule.core.report.CheckReport, list[str]]:
    report = chainrule.check(source, task="text-classification", settings=settings)
    return report, [finding.message for finding in report.findings if finding.kind == kind]


def shuffled_days(count: int) -> list[str]:
    return [f"2026-0{1 + day // 28}-{1 + day % 28:02d}" for day in np.random.default_rng(0).permutation(count)]


def test_the_latest_rows_of_a_single_file_are_held_out(tmp_path: Path) -> None:
    source = single(tmp_path, shuffled_days(60))
    report, (message,) = found_of(source, "cut")
    assert report.cut is not None
    assert {name: report.cut[name] for name in ("by", "column", "rows", "from")} == {
        "by": "time",
        "column": "date",
        "rows": {"train": 48, "test": 6, "validation": 6},
        "from": {"train": "2026-01-01", "test": "2026-02-27", "validation": "2026-02-21"},
    }
    assert message == (
        "The rows were cut by time (column 'date'), the latest held out: 48 train from 2026-01-01 on, 6 validation "
        "from 2026-02-21 on, 6 test from 2026-02-27 on."
    )


def test_a_cut_at_random_can_be_asked_for(tmp_path: Path) -> None:
    source = single(tmp_path, shuffled_days(60))
    report, messages = found_of(source, "cut", **{"data.cut_by": "hash"})
    assert messages == []
    assert report.cut is not None
    assert report.cut["by"] == "hash"
    other, _ = found_of(single(tmp_path / "plain", ["soon"] * 60), "cut", **{"data.cut_by": "auto"})
    assert other.cut is not None
    assert other.cut["by"] == "hash"


def test_a_column_of_any_name_may_be_named(tmp_path: Path) -> None:
    source = single(tmp_path, [str(1900 + year) for year in range(60)], "year")
    report, _ = found_of(source, "cut", **{"data.time_column": "year"})
    assert report.cut is not None
    assert report.cut["from"] == {"train": "1900", "test": "1954", "validation": "1948"}
    with pytest.raises(DataError, match="no such column of times"):
        found_of(source, "cut", **{"data.time_column": "years"})
    with pytest.raises(DataError, match="cannot be cut by time") as caught:
        found_of(source, "cut", **{"data.cut_by": "time"})
    assert "--set data.time_column=COLUMN" in caught.value.problems[0].todo


def test_rows_without_a_time_are_told(tmp_path: Path) -> None:
    source = single(tmp_path, [*shuffled_days(58), "", "soon"])
    report, (message,) = found_of(source, "untimed")
    assert message == "2 rows have no time in the column 'date': splits are cut at random, not by time."
    assert report.cut is not None
    assert report.cut["by"] == "hash"
    with pytest.raises(DataError, match="cannot be cut by time") as caught:
        found_of(source, "cut", **{"data.cut_by": "time"})
    assert [problem.where.row for problem in caught.value.problems] == [59, 60]


def test_validation_is_cut_out_of_train_by_time(tmp_path: Path) -> None:
    times = {"train": shuffled_days(40), "test": [f"2026-03-{day:02d}" for day in range(1, 12)]}
    report, _ = found_of(write(tmp_path, "date", times), "cut")
    assert report.cut is not None
    assert report.cut["rows"] == {"train": 36, "validation": 4}
    assert report.cut["from"]["validation"] == "2026-02-09"
    assert leaks(tmp_path) == []


def test_the_cut_is_found_again_when_the_model_is_judged(tiny_bert: Path, tmp_path: Path) -> None:
    source = single(tmp_path, shuffled_days(60))
    settings = {"model": str(tiny_bert), "task": "text-classification", "training.steps": 2, "training.threads": 1}
    run = chainrule.train(str(source), out=tmp_path / "run", settings=settings)
    told = json.loads((run.path / "check.json").read_text(encoding="utf-8"))
    assert told["cut"]["by"] == "time"
    assert chainrule.evaluate(run, str(source)).rows == 6


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=3, max_size=80))
def test_what_is_held_out_is_never_earlier(rows: list[tuple[int, int]]) -> None:
    hashes = hash_texts([[str(text) for text, _ in rows]])
    times = np.array([time for _, time in rows], dtype=np.float64)
    parts = cut_by_time(hashes, times, {"test": 0.1, "validation": 0.2})
    if parts is None:
        assert len(set(hashes.tolist())) < 3
        return
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(rows)))
    sides = [set(hashes[places].tolist()) for places in parts.values()]
    assert len(set().union(*sides)) == sum(map(len, sides))
    latest = {code: times[hashes == code].max() for code in set(hashes.tolist())}
    ends = [[latest[code] for code in side] for side in sides]  # train, test, validation
    assert max(ends[0]) <= min(ends[2])
    assert max(ends[2]) <= min(ends[1])


def test_labels_that_occur_late_are_left_in_train(tmp_path: Path) -> None:
    rows = sentences(60, seed=1)
    cells = days(1, 28) + [f"2026-04-{day:02d}" for day in range(1, 31)] + ["2026-05-01", "2026-05-02"]
    late = [row | {"date": cell} for row, cell in zip(rows, cells, strict=True)]
    for row in late[-3:]:
        row["label"] = "new"
    report, (message,) = found_of(write_csv(tmp_path / "rows.csv", late), "cut")
    assert report.splits["train"].labels["new"] == 1
    assert "1 row of train is later than the first of the rows held out" in message
