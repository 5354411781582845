"""Ctrl-C and SIGTERM that wait for the end of the step, in this process or, told by a file, in others."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

_FILE: ContextVar[Path | None] = ContextVar("file", default=None)


class StopRequest:
    """Whether somebody has asked for an end, by a signal or in a file."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._file = _FILE.get()

    @property
    def signal(self) -> int | None:
        """The number of the signal, None before."""
        if self._noted is None and self._file is not None:
            with suppress(OSError, ValueError):
                self._noted = int(self._file.read_text(encoding="ascii"))
        return self._noted

    def note(self, number: int) -> None:
        """A signal has come."""
        self._noted = number


@contextmanager
def told_by(file: Path) -> Iterator[None]:
    """Inside, the number of a signal in this file asks for an end, too: for processes that signals do not reach."""
    token = _FILE.set(file)
    try:
        yield
    finally:
        _FILE.reset(token)


@contextmanager
def stop_requests(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """Inside, the first Ctrl-C or SIGTERM is only noted; a second one acts as it does outside.

    In another thread than the main one, where Python lets nobody catch signals, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        request.note(number)
        for which, handler in before.items():
            signal.signal(which, handler)
        tell("Stopping at the end of this step; once more stops at once.")

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN and handler is not None:
                signal.signal(number, note)
        yield request
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def who_stopped(number: int) -> tuple[str, int]:
    """What a person calls the signal, and the exit code of a program that it ends."""
    return ("Ctrl-C", 130) if number == signal.SIGINT else ("SIGTERM", 143)
