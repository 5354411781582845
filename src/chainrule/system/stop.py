"""Ctrl-C and SIGTERM that wait for the end of the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class StopRequest:
    """Whether somebody has asked for an end: the number of the signal, None before."""

    signal: int | None = None


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
        request.signal = number
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
