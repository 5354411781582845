"""Times in cells, and splits whose rows are out of their order."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import numpy as np

from chainrule.core.report import Finding
from chainrule.data.flaws import agree, count_rows, finding
from chainrule.data.table import Table

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


def time_leaks(tables: Mapping[str, Table], used: Collection[str]) -> list[Finding]:
    """Warn about rows of given splits that are later than the first row of a split which is to stand for the future.

    Args:
        used: columns that are fields of the task, and so no times.
    """
    train = tables.get("train")
    if train is None:
        return []
    column = next((name for name in NAMES if name not in used and all(name in t.names for t in tables.values())), None)
    known = {} if column is None else {name: _times(table, column) for name, table in tables.items()}
    if any(times is None for times in known.values()):
        return []
    found = []
    for name, times in known.items():
        mine = known["train"]
        if name == "train" or times is None or mine is None or not len(times):
            continue
        later = mine > times.min()
        count = int(later.sum())
        if count:
            first = datetime.fromtimestamp(float(times.min()), UTC).date().isoformat()
            rows = f"{count_rows(count, 'train')} {agree(count, 'are')} later than the first row of {name}"
            message = f"{rows} ({column} {first})."
            todo = "Where the model is to be used on what comes after, cut by time: else the score may be too good."
            leak = finding(
                "time-leak", "warning", message, todo=todo, split=name, file=train.file, rows=train.rows[later]
            )
            found.append(leak)
    return found


def _times(table: Table, column: str) -> np.ndarray | None:
    """(n,) seconds; None where a cell is no time, or one of a clock that does not begin in 1970."""
    try:
        times = np.array([seconds_of(cell or "") for cell in table.texts(column)])
    except (ValueError, OverflowError):
        return None
    return times if not len(times) or (times.min() > EARLIEST and times.max() < LATEST) else None
