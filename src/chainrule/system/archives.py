"""Take chosen files out of an archive, by path, and nothing else.

Every file is opened inside the archive and copied to a path that is made here; an archive never says where its
content goes. Names that are absolute or climb with `..`, links and devices are refused, and so is more content than
`MAX_UNPACKED_BYTES`. Nothing that is unpacked is run or imported.
"""

from __future__ import annotations

import errno
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from chainrule.errors import AssetError, Problem, Where

MAX_UNPACKED_BYTES = 4 * 2**30
_DAMAGE = (  # what the standard library raises for archives that are none, encrypted, or packed in unknown ways
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    plain: bool
    folder: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, members: Sequence[str], folder: Path, *, inner: str = "") -> None:
    """Copy `members` of a zip (or wheel) archive into `folder`.

    Args:
        archive: the zip file.
        members: paths inside the archive. A path that ends in "/" is a folder: all below it is copied, with its
            sub-folders; any other path is one file, copied under its base name.
        inner: path of a .tar.gz file inside the zip that holds the members; "" when the zip holds them itself.

    Raises:
        AssetError: the archive is damaged, holds a chosen member that is no plain file or would land outside
            `folder`, lacks a member, or unpacks to more than MAX_UNPACKED_BYTES.
    """
    with _archive_errors(archive), zipfile.ZipFile(archive) as outer:
        if not inner:
            _copy(archive, _zip_entries(outer), members, folder)
            return
        if inner not in outer.namelist():
            raise _refused(archive, f"a member {inner!r}", "no such member")
        with outer.open(inner) as file, tarfile.open(fileobj=file, mode="r:gz") as nested:
            _copy(archive, _tar_entries(archive, nested), members, folder)


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix modes

        def read(info: zipfile.ZipInfo = info) -> IO[bytes]:
            return archive.open(info)

        yield _Entry(info.filename, info.file_size, kind in (0, stat.S_IFREG), info.is_dir(), read)


def _tar_entries(path: Path, archive: tarfile.TarFile) -> Iterator[_Entry]:
    for info in archive:

        def read(info: tarfile.TarInfo = info) -> IO[bytes]:
            file = archive.extractfile(info)
            if file is None:
                raise _refused(path, "a plain file", f"the member {info.name!r}")
            return file

        yield _Entry(info.name, info.size, info.isreg(), info.isdir(), read)


def _copy(archive: Path, entries: Iterator[_Entry], members: Sequence[str], folder: Path) -> None:
    missing, total = set(members), 0
    for entry in entries:
        member = next((m for m in members if entry.name == m or (m.endswith("/") and entry.name.startswith(m))), None)
        if member is None:
            continue
        target = folder / _relative(archive, entry, member)
        if entry.folder:
            continue
        if not entry.plain:
            raise _refused(archive, "plain files", f"the link or device {entry.name!r}")
        if target.exists():
            raise _refused(archive, "each file once", f"{entry.name!r} twice")
        total += entry.size
        if total > MAX_UNPACKED_BYTES:
            raise _refused(archive, f"at most {MAX_UNPACKED_BYTES:,} bytes unpacked", f"{total:,} bytes or more")
        target.parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 2**20)
        missing.discard(member)
    if missing:
        raise _refused(archive, f"the members {', '.join(members)}", f"no {', '.join(sorted(missing))}")


def _relative(archive: Path, entry: _Entry, member: str) -> PurePosixPath:
    path = PurePosixPath(entry.name)
    unsafe = path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00-\x1f]", entry.name)
    if unsafe:
        raise _refused(archive, "names inside the folder", f"the name {entry.name!r}")
    return path.relative_to(member) if member.endswith("/") else PurePosixPath(path.name)


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, not of the archive
            raise
        raise _refused(archive, "a whole archive", f"{type(error).__name__}: {error}") from error


def _refused(archive: Path, expected: str, got: str) -> AssetError:
    problem = Problem(
        where=Where(file=archive.name), expected=expected, got=got, todo="Do not use this file; please report it."
    )
    return AssetError(f"The archive {archive.name} was refused.", [problem])
