"""A PostgreSQL of its own for tests, in a folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

USER, NAME = "chainrule", "postgres"  # the second is there from the beginning
UNPRIVILEGED = "postgres", "nobody"


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them off the path. None where it is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@contextmanager
def postgresql(password: str) -> Iterator[str]:
    """A server on a socket in a temporary folder, started as an unprivileged user; afterwards it is gone.

    Yields:
        The URL of a database without tables. A wrong password is refused.
    """
    programs = binaries()
    if programs is None:
        raise FileNotFoundError("PostgreSQL's initdb and postgres")
    user = next((name for name in UNPRIVILEGED if _is_there(name)), None) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="chainrule-pg-"))
    try:
        (folder / "password").write_text(password, encoding="utf-8")
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        folder.chmod(0o755)  # others must reach the socket
        data, log = folder / "data", folder / "log"
        make: list[Path | str] = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            f"--pwfile={folder / 'password'}",
        ]
        _run([*make, "--no-sync", "--encoding=UTF8", "--locale=C"], user, folder)
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c shared_buffers=16MB"
        control: list[Path | str] = [programs / "pg_ctl", "-D", data, "-w"]
        _run([*control, "-t", "120", "-l", log, "-o", settings, "start"], user, folder)
        try:
            yield f"postgresql://{USER}:{quote(password, safe='')}@/{NAME}?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"], user, folder)
    finally:
        shutil.rmtree(folder)


def _is_there(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


def _run(command: Sequence[Path | str], user: str | None, folder: Path) -> None:
    done = subprocess.run(
        command,
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{Path(command[0]).name}: {done.stderr.decode(errors='replace')}")
