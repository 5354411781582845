"""Files that are either there whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from chainrule.errors import ModelError, OutputError, Problem, Where

MAX_JSON = 64_000_000  # bytes of a file that holds no rows and no weights


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` by one rename, on failure it is removed."""
    with output_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file of a model, an artifact or a run.

    Args:
        most: bytes that the file may have.

    Raises:
        ModelError: it cannot be read, is too large, or is no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise _no_object(path, f"at most {most:,} bytes", f"{size:,} bytes")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair could not be written again
    except OSError as error:
        raise _no_object(path, "a file that can be read", error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _no_object(path, "UTF-8 JSON", str(error)[:200]) from error
    if not isinstance(value, dict):
        raise _no_object(path, "a JSON object", type(value).__name__)
    return value


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path` by one rename, on failure it is removed.

    Raises:
        OutputError: `path` exists, or its parent cannot be written.
    """
    refuse_existing(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for part in [*temporary.rglob("*"), temporary]:
                flush(part)
            temporary.replace(path)
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the operating system put a file, or the entries of a folder, on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in _NO_SUCH_CALL:  # some file systems flush files only
            raise
    finally:
        os.close(handle)


def refuse_existing(path: Path) -> None:
    """Raise OutputError if something is already at `path`; nothing is ever overwritten."""
    if os.path.lexists(path):
        problem = Problem(
            where=Where(file=str(path)),
            expected="a path that does not exist yet",
            got="an existing " + ("folder" if path.is_dir() else "file"),
            todo="Choose another --out, or move the old one away: nothing is overwritten.",
        )
        raise OutputError(f"The output path {path} exists already.", [problem])


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write near `path` into an OutputError that says what to do."""
    try:
        yield
    except PermissionError as error:
        problem = Problem(
            where=Where(file=str(path)),
            expected="a folder you may write to",
            got="no write permission",
            todo="Choose another --out, or change the folder's permissions.",
        )
        raise OutputError(f"No permission to write {path}.", [problem]) from error
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        problem = Problem(
            where=Where(file=str(path)),
            expected="an output path inside a folder",
            got=f"{error.filename or path} is not there or is not a folder",
            todo="Choose another --out.",
        )
        raise OutputError(f"Cannot write {path}.", [problem]) from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            problem = Problem("a shorter path", str(error.strerror).lower(), "Choose another --out.", Where(str(path)))
            raise OutputError(f"Cannot write {path}.", [problem]) from error
        if not _is_no_room(error):
            raise
        problem = Problem(
            where=Where(file=str(path)),
            expected="room on the disk",
            got=str(getattr(error, "strerror", None) or error),
            todo="Free some space or choose another --out.",
        )
        raise OutputError(f"The disk that holds {path} is full or read-only.", [problem]) from error


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_object(path: Path, expected: str, got: str) -> ModelError:
    problem = Problem(expected, got, "Take a copy of the folder that is whole.", Where(file=str(path)))
    return ModelError(f"Cannot read {path.name} in {path.parent}.", [problem])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_no_room(error: Exception) -> bool:
    """Whether a write failed for want of room. safetensors tells the operating system's number in its text only."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return any(f"os error {number})" in str(error) for number in _NO_ROOM)


_NO_ROOM = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
_NO_SUCH_CALL = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def free_path(path: Path) -> Path:
    """The path itself where nothing is there, else the first of path-2, path-3, … where nothing is."""
    free, number = path, 2
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free
