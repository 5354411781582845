"""What was computed once and is kept in the cache folder, within a limit of bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chainrule.system.assets import cache_folder

DISK_SHARE = 0.5  # of what is free


@dataclass(frozen=True)
class Store:
    """A folder of the cache whose entries, files or folders, can each be made again.

    An entry is named by a hash of everything it follows from, so that one that is there is never out of date.

    Attributes:
        name: the folder's.
        limit: bytes of all entries together.
    """

    name: str
    limit: int

    def entry(self, key: str) -> Path:
        """Where the entry of that name is, or would be. Its folder is made.

        Raises:
            OSError: the cache folder cannot be written.
        """
        folder = cache_folder() / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / key

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be kept."""
        return size <= min(self.limit, DISK_SHARE * shutil.disk_usage(cache_folder()).free)

    def use(self, entries: Collection[Path]) -> None:
        """Note that entries are in use; what was not used for longest goes until all are within the limit."""
        for entry in entries:
            os.utime(entry)
        others: list[tuple[float, Path]] = []
        for path in (cache_folder() / self.name).iterdir():
            with suppress(FileNotFoundError):  # another process has just removed it
                others += [] if path in entries else [(path.stat().st_mtime, path)]
        total = sum(map(_size, entries))
        for _, path in sorted(others, reverse=True):
            total += _size(path)
            if total > self.limit:
                remove(path)


def remove(entry: Path) -> None:
    """Remove an entry, whether it is there or not."""
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _size(entry: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in (entry.iterdir() if entry.is_dir() else [entry]))
    return 0
