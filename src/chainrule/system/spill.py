"""Data that outgrows memory: in a file without a name, memory-mapped, and gone with the process however that ends."""

from __future__ import annotations

import io
import mmap
import tempfile
from types import TracebackType
from typing import BinaryIO, cast

from chainrule.system.assets import cache_folder

MEMORY_BYTES = 16 * 2**20  # less than a tenth of what Python with torch takes


class Spill:
    """Bytes that are written piece by piece and then read as one.

    Up to MEMORY_BYTES stay in memory. More go to the cache folder, or else to the system's folder for temporary files;
    where neither has room, they stay in memory too. What `read` gives outlives the `with` block.
    """

    def __init__(self) -> None:
        self._memory = io.BytesIO()
        self._file: BinaryIO | None = None
        self._has_room = True

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Add `data` at the end."""
        self._memory.write(data)
        if self._memory.tell() > MEMORY_BYTES and self._has_room:
            self._empty_memory()

    def read(self) -> memoryview:
        """All that was written; nothing is written afterwards."""
        if self._file is not None and self._memory.tell() and self._has_room:
            self._empty_memory()
        if self._file is None or not self._file.tell():
            return self._memory.getbuffer()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(mapped if not self._memory.tell() else b"".join([mapped, self._memory.getbuffer()]))

    def _empty_memory(self) -> None:
        """Move what is in memory to the end of the file, if that has room."""
        try:
            self._file = self._file or _nameless_file()
        except OSError:
            self._has_room = False
            return
        end, left = self._file.tell(), self._memory.getbuffer()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._has_room = False
            self._file.seek(self._file.truncate(end))
        else:
            self._memory = io.BytesIO()


def _nameless_file() -> BinaryIO:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, tempfile.TemporaryFile(buffering=0, dir=folder))
    except OSError:
        return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
