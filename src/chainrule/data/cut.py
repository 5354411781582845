"""Splits of our own: by time where rows have one, else by hashes of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.core.recipe import Data
from chainrule.core.report import Finding
from chainrule.data.flaws import MAX_PROBLEMS, agree, count_rows, finding, shorten
from chainrule.data.read import SPLITS
from chainrule.data.rows import Rows
from chainrule.data.split import TRAIN, Cut, cut_labelled
from chainrule.data.times import Clock
from chainrule.errors import DataError, Problem, Where


@dataclass(frozen=True)
class Made:
    """Splits as they are used.

    Attributes:
        cut: how they were made; None where they were given.
        told: what a report says of the cut.
    """

    splits: dict[str, Rows]
    cut: Cut | None = None
    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    told: dict[str, Any] | None = None


def made_of(
    rows: dict[str, Rows],
    clocks: Mapping[str, Clock],
    spec: Data,
    fingerprint: Mapping[str, str],
    recorded: Cut | None,
) -> Made:
    """Cut a single file three ways, or validation out of train; leave given splits alone.

    Args:
        clocks: by split, for those whose rows have times.
        recorded: a cut made before, used again where these are the same rows.

    Raises:
        DataError: a cut by time is asked for, and there are rows without one.
    """
    if "all" in rows:
        source, fractions = "all", {"test": spec.test_fraction, "validation": spec.validation_fraction}
    elif "validation" not in rows:
        source, fractions = TRAIN, {"validation": spec.validation_fraction}
    else:
        return Made(rows)
    whole = rows[source]
    clock, findings = _usable(clocks.get(source), whole, spec)
    if recorded is not None and recorded.matches(fingerprint.get(source), whole.row_hashes):
        parts: dict[str, np.ndarray] | None = recorded.apply(whole.row_hashes)
    else:
        times = None if clock is None else clock.of(whole.places.rows)
        parts = cut_labelled(whole.hashes, whole.values, fractions, times)
    if parts is None:
        problem = Problem(
            f"rows enough to cut {' and '.join(reversed(fractions))} from, with every label left in train",
            f"{count_rows(len(np.unique(whole.hashes)), None, 'different row')}",
            "Add rows, or give a folder with train, validation and test files.",
            Where(file=whole.places.file),
        )
        others = {name: part for name, part in rows.items() if name not in ("all", TRAIN)}
        return Made({TRAIN: whole, **others}, None, [*findings, _too_few(problem)], [problem])
    given = {name: part for name, part in rows.items() if name != source}
    made = {name: whole.take(indices) for name, indices in parts.items()}
    splits = {name: (made | given)[name] for name in SPLITS if name in made | given}
    cut = Cut(fingerprint.get(source), {name: np.sort(part.row_hashes) for name, part in made.items()})
    told: dict[str, Any] = {
        "sha256": cut.sha256,
        "rows": {name: len(part) for name, part in made.items()},
        "by": "hash",
    }
    if clock is not None:
        told |= {"by": "time", "column": clock.column, "from": _firsts(made, clock)}
        findings.append(_by_time({name: made[name] for name in SPLITS if name in made}, clock))
    return Made(splits, cut, findings, [], told)


def _usable(clock: Clock | None, rows: Rows, spec: Data) -> tuple[Clock | None, list[Finding]]:
    """The clock that the rows are cut by, if any; raises DataError where it was asked for and is not there."""
    if spec.cut_by == "hash" or not len(rows):
        return None, []
    if clock is None:
        if spec.cut_by == "time":
            todo = "Name it with --set data.time_column=COLUMN, or leave data.cut_by out."
            where = Where(rows.places.file, field="data.cut_by")
            raise DataError("The rows cannot be cut by time.", [Problem("a column of times", "none", todo, where)])
        return None, []
    times = clock.of(rows.places.rows)
    lacking = np.flatnonzero(np.isnan(times))
    if not len(lacking):
        varied = len(np.unique(times)) > 1 or spec.cut_by == "time"
        return (clock if varied else None), []
    if spec.cut_by == "time":
        todo = "Write seconds as a number, or a date such as 2026-11-22 or 2026-11-22T08:30:00."
        problems = [
            Problem("a time", clock.shown(int(rows.places.rows[place])), todo, rows.places.where(place, clock.column))
            for place in lacking[:MAX_PROBLEMS].tolist()
        ]
        raise DataError("The rows cannot be cut by time.", problems)
    if 2 * len(lacking) > len(rows):
        return None, []
    count = len(lacking)
    message = (
        f"{count_rows(count, None)} {agree(count, 'have')} no time in the column {shorten(clock.column)}: splits are "
        "cut at random, not by time."
    )
    todo = "Fill in these times, or set data.cut_by=hash where time does not matter."
    found = finding("untimed", "warning", message, todo=todo, file=rows.places.file, rows=rows.places.rows[lacking])
    return None, [found]


def _by_time(made: Mapping[str, Rows], clock: Clock) -> Finding:
    firsts = _firsts(made, clock)
    sizes = [f"{len(part):,} {name} from {firsts[name]} on" for name, part in made.items()]
    message = f"The rows were cut by time (column {shorten(clock.column)}), the latest held out: {', '.join(sizes)}."
    border = min(clock.of(part.places.rows).min() for name, part in made.items() if name != TRAIN)
    late = int((clock.of(made[TRAIN].places.rows) > border).sum())
    if late:
        message += (
            f" {count_rows(late, TRAIN)} {agree(late, 'are')} later than the first of the rows held out: train would "
            "lack their labels, or an earlier row with the same inputs is held out with a later one."
        )
    todo = "Set data.cut_by=hash to cut at random."
    return finding("cut", "info", message, todo=todo, file=made[TRAIN].places.file)


def _firsts(made: Mapping[str, Rows], clock: Clock) -> dict[str, str]:
    """Split -> its earliest time, as it stands in the file."""
    found = {}
    for name, part in made.items():
        first = part.places.rows[np.argmin(clock.of(part.places.rows))]
        found[name] = clock.shown(int(first))
    return found


def _too_few(problem: Problem) -> Finding:
    message = f"Too few rows to cut into splits: {problem.got}."
    return finding("too-few-rows", "error", message, todo=problem.todo, file=problem.where.file)
