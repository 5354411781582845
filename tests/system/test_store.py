"""What is kept in the cache stays within its limit, oldest use first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chainrule.system.store import Store, remove

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    return tmp_path / "things"


def test_what_was_not_used_for_longest_goes_first(cache: Path) -> None:
    store = Store("things", 100)
    for age, name in enumerate(("new", "middle", "old")):
        entry = store.entry(name)
        if name == "middle":
            entry.mkdir()
            (entry / "a").write_bytes(b"x" * 20)
            (entry / "b").write_bytes(b"x" * 20)
        else:
            entry.write_bytes(b"x" * 40)
        os.utime(entry, (1_000_000 - age, 1_000_000 - age))
    store.use([])
    assert sorted(path.name for path in cache.iterdir()) == ["middle", "new"]
    fresh = store.entry("fresh")
    fresh.write_bytes(b"x" * 50)
    store.use([fresh])
    assert sorted(path.name for path in cache.iterdir()) == ["fresh", "new"]
    store.use([store.entry("new")])
    store.entry("more").write_bytes(b"x" * 20)
    store.use([store.entry("more")])
    assert sorted(path.name for path in cache.iterdir()) == ["more", "new"]


def test_what_is_in_use_stays_though_it_is_beyond_the_limit(cache: Path) -> None:
    store = Store("things", 10)
    assert store.entry("large").write_bytes(b"x" * 50)
    store.use([store.entry("large")])
    assert [path.name for path in cache.iterdir()] == ["large"]


def test_room_is_what_the_limit_and_the_disk_leave(cache: Path) -> None:
    store = Store("things", 100)
    store.entry("any")
    assert store.has_room(100)
    assert not store.has_room(101)
    assert not Store("things", 2**62).has_room(2**61)


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")
