"""Data that outgrows memory comes back byte for byte, wherever it was put."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.system import spill
from chainrule.system.spill import Spill

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(spill, "MEMORY_BYTES", 100)
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(*pieces: bytes) -> memoryview:
    with Spill() as store:
        for piece in pieces:
            store.write(memoryview(piece))
        return store.read()


def is_mapped(data: memoryview) -> bool:
    return isinstance(data.obj, mmap.mmap)


@given(st.lists(st.binary(max_size=250), max_size=12))
def test_what_was_written_is_read(pieces: list[bytes]) -> None:
    assert bytes(written(*pieces)) == b"".join(pieces)


def test_large_data_is_a_mapped_file_without_a_name(small: Path) -> None:
    assert not is_mapped(written(b"x" * 100))
    assert not small.exists()
    found = written(b"x" * 90, b"y" * 90)
    assert is_mapped(found)
    assert list(small.iterdir()) == []


def test_without_a_cache_folder_the_system_s_is_used(small: Path) -> None:
    small.write_text("not a folder")
    assert is_mapped(written(b"x" * 1000))


@pytest.mark.parametrize("room", [0, 150, 260])
def test_without_room_on_the_disk_it_stays_in_memory(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file on a disk with little room: writes come short and then fail."""

        def __init__(self) -> None:
            self.file = make()

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, data: memoryview) -> int:
            left = room - self.file.tell()
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data[:left])

    make = spill._nameless_file
    monkeypatch.setattr(spill, "_nameless_file", Full)
    pieces = [bytes([letter]) * 60 for letter in range(10)]
    assert bytes(written(*pieces)) == b"".join(pieces)
