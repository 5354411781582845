"""One process at a time on a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from chainrule.errors import OutputError, Problem, Where
from chainrule.system.files import output_errors


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the operating system frees it when the process ends, however it ends.

    Raises:
        OutputError: another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        with output_errors(folder):
            lock.acquire(timeout=0)
    except Timeout:
        problem = Problem(
            where=Where(file=str(folder)),
            expected="a run folder that no other process works on",
            got="one that is in use",
            todo="Wait until the other process has ended, or stop it.",
        )
        raise OutputError(f"Another process works on {folder}.", [problem]) from None
    try:
        yield
    finally:
        lock.release()
