"""How much memory this process and its children have taken at most, and how much may still be taken."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

SAMPLE_SECONDS = 0.1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_SHORTAGE = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")  # in lower case
_MAYBE_SHORTAGE = ("could not create a primitive", "could not create a memory")  # oneDNN, for want of memory or others
_LITTLE = 1 << 30  # below this the latter are for want of memory
_GROUP = Path("/sys/fs/cgroup")  # what a container sees of its own group (version 2)


class PeakMemory:
    """Samples the resident memory of the process tree while it is open.

    `peak_mb` is the largest sum seen (MiB); a spike between two samples, SAMPLE_SECONDS apart, may be missed.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._peak = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        self._look()
        return round(self._peak / 2**20, 1)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:  # a child that has just ended
                continue
        self._peak = max(self._peak, total)


def free_memory() -> int:
    """Bytes this process may still take: what the machine has, within the limits of its control group and its own."""
    limits = [psutil.virtual_memory().available]
    limit, used = (_number(_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        reclaimable = _statistic(_GROUP / "memory.stat", "inactive_file")
        limits.append(limit - used + reclaimable)
    space = free_address_space()
    if space is not None:
        limits.append(space)
    return int(max(0, min(limits)))


def free_address_space() -> int | None:
    """Bytes of address space that the process may still reserve (`ulimit -v`); None for no limit."""
    if not hasattr(psutil, "RLIMIT_AS"):  # only Linux tells
        return None
    process = psutil.Process()
    limit, _ = process.rlimit(psutil.RLIMIT_AS)
    return None if limit == psutil.RLIM_INFINITY else max(0, limit - process.memory_info().vms)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that there was no memory left: Python's, torch's on a CPU, or a device's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    if any(words in said for words in _MAYBE_SHORTAGE):
        return free_memory() < _LITTLE
    return any(words in said for words in _SHORTAGE)


def kernel_kills() -> int | None:
    """How many processes the system has killed for want of memory since it started; None where it does not say."""
    for path in (_GROUP / "memory.events", Path("/proc/vmstat")):
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        found = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if found:
            return found[0]
    return None


def keep_freed() -> None:
    """Let large pieces of memory that were freed be used again without asking the system anew (glibc).

    What a training step frees the next one takes again; fresh pages cost 7 to 12 % of a step (LOG.md, 2026-11-22).
    """
    change = _c_function("mallopt")
    if change is not None:
        change(_MMAP_THRESHOLD, 1 << 30)
        change(_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed() -> None:
    """Give memory that was freed back to the system, where the C library keeps it for later (glibc)."""
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


def _c_function(name: str) -> Any:
    """A function of the C library; None where it has none of this name."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or no number in it ("max")."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + " ")), 0)
