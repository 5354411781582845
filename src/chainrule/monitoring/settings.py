"""How closely a model is watched, in the words of the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from chainrule.core.parsing import validation_problems
from chainrule.core.recipe import Section
from chainrule.errors import Problem, RecipeError, Where

MOST_PERIOD = 170  # windows of a cycle: the counts of 28 cycles are kept, a week of hours among them

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAMES = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


@dataclass(frozen=True)
class Span:
    """A stretch of time, or of rows.

    Attributes:
        size: seconds, or rows.
        text: in words, e.g. "hour", "15 minutes" or "500 rows".
    """

    size: float
    of_rows: bool
    text: str

    def times(self, number: int) -> str:
        """So many of them, in words."""
        return self.text if number == 1 else _words(self.size * number, self.of_rows)


class Settings(Section):
    """What a monitor does.

    Attributes:
        window: the stretch after whose end counts are looked at: 15m, 1h, 1d, or a number of rows.
        cycle: the stretch after which counts over time repeat themselves, such as 1d or 7d; None for none.
        false_alarms: the stretch in which one false alarm is expected, over all charts of a model.
        rows: predictions that are kept; older ones make room.
        first: rows that make the reference of a model that has none.
        drift_rows: rows that are compared with the reference at a time, at least.
        keep_text: seconds that the texts of rows are kept; None keeps none.
        segment: the column whose values are watched label by label.
        low: the confidence below which a row is worth labelling; None takes the reference's.
    """

    window: str = "1h"
    cycle: str | None = None
    false_alarms: str = "30d"
    rows: int = Field(default=10_000, ge=1_000)
    first: int = Field(default=1_000, ge=100)
    drift_rows: int = Field(default=200, ge=50)
    keep_text: float | None = Field(default=None, gt=0)
    segment: str | None = None
    low: float | None = Field(default=None, ge=0, le=1)

    @property
    def span(self) -> Span:
        """The window."""
        return read_span("window", self.window)

    @property
    def period(self) -> int:
        """The windows of a cycle; 1 where there is none."""
        return 1 if self.cycle is None else round(read_span("cycle", self.cycle).size / self.span.size)

    @property
    def budget(self) -> float:
        """False alarms that a window may have, on average, over all charts of a model."""
        return self.span.size / read_span("false_alarms", self.false_alarms).size


def read_settings(values: dict[str, Any]) -> Settings:
    """The settings that are given, and the others at their defaults.

    Args:
        values: `keep_text` may be a stretch of time in words.

    Raises:
        RecipeError: one is out of range; all of them are named.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if isinstance(given.get("keep_text"), str):
        span = read_span("keep_text", given["keep_text"])
        if span.of_rows:
            raise _refused("keep_text", "a stretch of time, such as 12h or 7d", values["keep_text"])
        given["keep_text"] = span.size
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        problems = validation_problems(error, Settings, None)
        raise RecipeError("The settings of the monitor are wrong.", problems) from None
    window, every = settings.span, read_span("false_alarms", settings.false_alarms)
    if window.of_rows != every.of_rows:
        kind = "a number of rows" if window.of_rows else "a stretch of time"
        raise _refused("false_alarms", f"{kind}, as the window is", settings.false_alarms)
    if settings.cycle is not None:
        cycle = read_span("cycle", settings.cycle)
        windows = cycle.size / window.size
        if cycle.of_rows or window.of_rows or windows % 1 or not 2 <= windows <= MOST_PERIOD:
            raise _refused("cycle", f"2 to {MOST_PERIOD} windows, as a stretch of time", settings.cycle)
    if settings.first > settings.rows:
        raise _refused("first", f"at most as many rows as are kept ({settings.rows:,})", settings.first)
    if every.size < 10 * window.size:
        raise _refused("false_alarms", "at least ten windows", settings.false_alarms)
    return settings


def read_span(field: str, text: str) -> Span:
    """A stretch of time (30s, 15m, 1h, 7d) or of rows (500).

    Raises:
        RecipeError: it is neither.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0 or (not found[2] and "." in found[1]):
        raise _refused(field, "a stretch of time, such as 15m, 1h or 7d, or a number of rows", text)
    size = float(found[1]) * _UNITS.get(found[2], 1.0)
    return Span(size, not found[2], _words(size, not found[2]))


def _words(size: float, of_rows: bool) -> str:
    """A size in the largest unit that it is a multiple of: "hour", "90 minutes", "500 rows"."""
    if of_rows:
        return f"{size:,.0f} rows"
    unit = next((unit for unit in ("d", "h", "m") if size % _UNITS[unit] == 0), "s")
    number, name = size / _UNITS[unit], _NAMES[unit]
    return name if number == 1 else f"{number:g} {name}s"


def _refused(field: str, expected: str, got: object) -> RecipeError:
    problem = Problem(expected, repr(got), f"Change {field}.", Where(field=field))
    return RecipeError("The settings of the monitor are wrong.", [problem])
