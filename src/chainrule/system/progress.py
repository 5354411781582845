"""What a person sees while work goes on: a live bar on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0
# control characters but tab and line break, marks that change the direction of text, halves of surrogate pairs
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Bar(Protocol):
    """A piece of counted work."""

    def advance(self, amount: int, note: str = "") -> None: ...


class Display(Protocol):
    """Where progress goes."""

    def say(self, message: str) -> None: ...

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]: ...


def visible(text: str) -> str:
    """Text with everything written out that a terminal would obey or could not show: escapes, bells, turned lines."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def console() -> Console:
    """The console for people: stderr, so that stdout stays free for results."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


@dataclass
class Quiet:
    """Shows nothing: the default of the Python functions."""

    def say(self, message: str) -> None:
        return

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        yield _Silent()


@dataclass
class Terminal:
    """Shows messages and bars on stderr."""

    console: Console = field(default_factory=console)

    def say(self, message: str) -> None:
        self.console.print(visible(message), markup=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total, note="")
            yield _Live(progress, task)


class _Silent:
    def advance(self, amount: int, note: str = "") -> None:
        return


class _Live:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: int, note: str = "") -> None:
        self._progress.update(self._task, advance=amount, note=note)  # type: ignore[arg-type]


class _Lines:
    """One line every few seconds, with the time that is left by the pace so far."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._done = 0
        self._started = self._spoken = time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._spoken < LINE_EVERY_SECONDS:
            return
        self._spoken = now
        left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
        self._console.print(f"{self._title} {self._done}/{self._total}, about {left:.0f} s left  {note}", markup=False)
