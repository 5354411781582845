"""Everything Chainrule raises on purpose.

    ChainruleError              exit code 1, our fault unless a subclass says otherwise
    ├── UserError               exit code 2, the input is wrong; carries every problem found
    │   ├── DataError           rows, columns, files
    │   │   └── NoSplitError    the data is not cut as asked
    │   ├── RecipeError         keys and values of a recipe
    │   ├── ModelError          a model folder or name that cannot be used
    │   ├── OutputError         an output path that cannot be written
    │   ├── ShortageError       not enough memory, whatever the size of the pieces
    │   ├── DivergedError       a loss that is no longer a number
    │   └── MissingExtraError   an optional package that is not installed
    ├── GateError               exit code 3, a result that does not hold what it must; nothing was put in place
    ├── StoppedError            Ctrl-C or SIGTERM ended a training after a step; exit code 130 or 143
    ├── ElsewhereError          another process of the same training has ended with an error, which it tells
    ├── LostError               another process of the same training is gone without a word
    └── AssetError              a download that failed or whose digest is wrong

Each message says what was expected, what was got and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)  # there may be a million of them
class Where:
    """A place in the user's input. `row` is the 1-based data row, `line` the 1-based line of the file."""

    file: str | None = None
    row: int | None = None
    line: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        parts = [self.file] if self.file else []
        if self.row is not None:
            parts.append(f"row {self.row}")
        if self.line is not None:
            parts.append(f"line {self.line}")
        if self.field is not None:
            parts.append(f"field {self.field!r}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input: where it is, what was expected, what was got, what to do."""

    expected: str
    got: str
    todo: str
    where: Where = field(default_factory=Where)

    def __str__(self) -> str:
        place = f"{self.where}: " if str(self.where) else ""
        return f"{place}expected {self.expected}, got {self.got}. {self.todo}"

    def as_dict(self) -> dict[str, Any]:
        return {"where": asdict(self.where), "expected": self.expected, "got": self.got, "todo": self.todo}


class ChainruleError(Exception):
    """The root of the tree."""

    exit_code = 1

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    def __str__(self) -> str:
        shown = [f"  - {problem}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            shown.append(f"  … and {len(self.problems) - 20} more (all of them with --json)")
        return "\n".join([self.message, *shown])

    def as_dict(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "problems": [problem.as_dict() for problem in self.problems]}}


class UserError(ChainruleError):
    """The user's input is wrong."""

    exit_code = 2


class DataError(UserError):
    """Rows, columns or files of the data are wrong."""


class NoSplitError(DataError):
    """The data has no split of that name."""


class RecipeError(UserError):
    """A recipe has unknown keys or values out of range."""


class ModelError(UserError):
    """A model folder or name cannot be used."""


class OutputError(UserError):
    """An output path cannot be written."""


class DivergedError(UserError):
    """The loss or the gradient is no longer a finite number."""


class ShortageError(UserError):
    """There is not enough memory for the smallest piece of the work."""


class GateError(ChainruleError):
    """What was made is not good enough to take the place of what it was made from."""

    exit_code = 3


class StoppedError(ChainruleError):
    """Ctrl-C or SIGTERM ended a training after a step; it can go on from there."""

    def __init__(self, message: str, problems: Sequence[Problem] = (), exit_code: int = 130) -> None:
        super().__init__(message, problems)
        self.exit_code = exit_code


class ElsewhereError(ChainruleError):
    """Another process of the same training has ended with an error; the exit code is that process's."""

    def __init__(self, message: str, problems: Sequence[Problem] = (), exit_code: int = 1) -> None:
        super().__init__(message, problems)
        self.exit_code = exit_code


class LostError(ChainruleError):
    """Another process of the same training is gone: killed, or cut off."""


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""


class AssetError(ChainruleError):
    """A catalog asset could not be fetched or is not what it should be."""
