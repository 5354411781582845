"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainrule.errors import OutputError
from chainrule.system.files import atomic_folder, atomic_path, refuse_existing, sha256, write_json, write_text

pytestmark = pytest.mark.unit


def test_a_file_replaces_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(f"half {1 / 0}", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.txt"]


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        write_text(folder / "recipe.yaml", f"{1 / 0}")
    assert not target.exists()
    assert list(target.parent.iterdir()) == []
    with atomic_folder(target) as folder:
        write_text(folder / "recipe.yaml", "x")
        assert not target.exists()
    assert [entry.name for entry in target.iterdir()] == ["recipe.yaml"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o500 == 0o500


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_existing_output_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.mkdir() if kind == "folder" else path.write_text("x", encoding="utf-8")
    with pytest.raises(OutputError) as caught:
        refuse_existing(path)
    assert caught.value.message == f"The output path {path} exists already."
    assert str(caught.value.problems[0]) == (
        f"{path}: expected a path that does not exist yet, got an existing {kind}. "
        "Choose another --out, or move the old one away: nothing is overwritten."
    )


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="Cannot write"), atomic_folder(tmp_path / "file" / "run"):
        pass


@pytest.fixture
def no_longer_root() -> Iterator[None]:
    """Root may write everywhere, so the test goes on as nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_no_permission(tmp_path: Path, no_longer_root: None) -> None:
    folder = Path("/") / "chainrule-may-not-write-here"
    with pytest.raises(OutputError, match="No permission to write") as caught, atomic_folder(folder):
        pass
    assert caught.value.problems[0].got == "no write permission"


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OutputError) as caught, atomic_path(tmp_path / "out"):
        full.write_text("x", encoding="utf-8")
    assert "full or read-only" in caught.value.message
    assert caught.value.problems[0].todo == "Free some space or choose another --out."


def test_json_refuses_what_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    write_json(tmp_path / "x.json", {"名": 1})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"名": 1}
    assert len(sha256(tmp_path / "x.json")) == 64


def test_a_name_too_long_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 400)
    with pytest.raises(OutputError, match="expected a shorter path"), atomic_folder(path):
        pass
    with pytest.raises(OutputError, match="expected a shorter path"), atomic_path(path):
        pass


def test_file_systems_that_flush_no_folders_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("whole", encoding="utf-8")
    assert (tmp_path / "made" / "file").read_text(encoding="utf-8") == "whole"


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="full or read-only"), atomic_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("whole", encoding="utf-8")
    assert not (tmp_path / "made").exists()
