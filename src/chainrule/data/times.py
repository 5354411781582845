"""Times in cells, and splits whose rows are out of their order."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from chainrule.core.report import Finding
from chainrule.data.flaws import agree, count_rows, finding, shorten, some
from chainrule.data.table import Table
from chainrule.errors import DataError, Problem, Where

# Columns that say when a row is from, best first.
NAMES = ("timestamp", "datetime", "date", "time", "created_at", "published_at", "published")
EARLIEST, LATEST = 1e8, 2e11  # seconds since 1970 of what is taken for a time: others are durations or milliseconds


def seconds_of(cell: str) -> float:
    """A number, or an ISO date, as seconds since 1970; a time without a zone is UTC.

    Raises:
        ValueError, OverflowError: it is neither.
    """
    try:
        value = float(cell)
    except ValueError:
        moment = datetime.fromisoformat(cell.strip())
        value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise ValueError(cell)
    return value


@dataclass(frozen=True)
class Clock:
    """When the rows of a file are from.

    Attributes:
        column: that says so.
        rows: (n,) the numbers of the file's rows, ascending.
        times: (n,) seconds; NaN where a cell is no time.
        cells: (n,) as they stand in the file.
    """

    column: str
    rows: np.ndarray
    times: np.ndarray
    cells: Sequence[str | None]

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The times of the rows with these numbers."""
        found: np.ndarray = self.times[np.searchsorted(self.rows, rows)]
        return found

    def shown(self, row: int) -> str:
        """The time of the row with this number, for a person: seconds since 1970 as a date."""
        place = int(np.searchsorted(self.rows, row))
        cell, time = self.cells[place] or "nothing", float(self.times[place])
        if not EARLIEST < time < LATEST or not _is_number(cell):
            return cell[:40]
        return datetime.fromtimestamp(time, UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00")


def clock_of(table: Table, used: Collection[str], column: str | None = None) -> Clock | None:
    """When the rows of a table are from; None where no column says so.

    Args:
        used: columns that are fields of the task, and so no times.
        column: which it is, whatever it is called and wherever its clock begins.

    Raises:
        DataError: the table has no such column.
    """
    if column is not None and column not in table.names:
        todo, where = "Correct data.time_column.", Where(table.file, field="data.time_column")
        problem = Problem(f"a column {shorten(column)}", some(table.names), todo, where)
        raise DataError("There is no such column of times.", [problem])
    name = column or next((name for name in NAMES if name not in used and name in table.names), None)
    if name is None or not len(table):
        return None
    clock = _clock(table, name, any_clock=column is not None)
    return None if np.isnan(clock.times).all() else clock


def _clock(table: Table, column: str, *, any_clock: bool) -> Clock:
    """The times of a column; cells that are none, or of a clock that does not begin in 1970, are NaN."""
    cells = table.texts(column)
    times = np.full(len(table), np.nan)
    for place, cell in enumerate(cells):
        with suppress(ValueError, OverflowError):
            times[place] = seconds_of(cell or "")
    if not any_clock:
        times[(times <= EARLIEST) | (times >= LATEST)] = np.nan
    order = np.argsort(table.rows, kind="stable")
    return Clock(column, table.rows[order], times[order], cells[order])


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        float(cell)
        return True
    return False


def time_leaks(tables: Mapping[str, Table], used: Collection[str], column: str | None = None) -> list[Finding]:
    """Warn about rows of given splits that are later than the first row of a split which is to stand for the future.

    Args:
        used: columns that are fields of the task, and so no times.
        column: which it is; None for one that is called so.
    """
    train = tables.get("train")
    if train is None:
        return []
    names = [name for name in NAMES if name not in used] if column is None else [column]
    name = next((name for name in names if all(name in table.names for table in tables.values())), None)
    if name is None:
        return []
    clocks = {split: _clock(table, name, any_clock=column is not None) for split, table in tables.items()}
    if any(np.isnan(clock.times).any() for clock in clocks.values()):
        return []
    mine, found = clocks["train"], []
    for split, clock in clocks.items():
        if split == "train" or not len(clock.times):
            continue
        later = mine.times > clock.times.min()
        count = int(later.sum())
        if count:
            first = clock.shown(int(clock.rows[clock.times.argmin()]))
            rows = f"{count_rows(count, 'train')} {agree(count, 'are')} later than the first row of {split}"
            message = f"{rows} ({name} {first})."
            todo = "Where the model is to be used on what comes after, cut by time: else the score may be too good."
            leak = finding(
                "time-leak", "warning", message, todo=todo, split=split, file=train.file, rows=mine.rows[later]
            )
            found.append(leak)
    return found
