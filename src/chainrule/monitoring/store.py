"""The file of a monitor: SQLite with a write-ahead log, so that a process may be killed at any moment.

What is written in one `writing` block is there whole or not at all. One process writes; others may read meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chainrule.errors import OutputError, Problem, UserError, Where
from chainrule.system.files import output_errors

FORMAT = 1
_APPLICATION = 0x43_68_72_57  # "ChrW", in the header of the file

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE predictions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, time REAL NOT NULL,
    labels TEXT NOT NULL, score REAL, length INTEGER, unknown REAL, vector BLOB, far INTEGER NOT NULL DEFAULT 0,
    low INTEGER NOT NULL DEFAULT 0, inputs TEXT, until REAL);
CREATE INDEX predictions_by_until ON predictions (until) WHERE until IS NOT NULL;
CREATE TABLE windows (
    model TEXT NOT NULL, number INTEGER NOT NULL, exposure REAL NOT NULL DEFAULT 0, closed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (model, number)) WITHOUT ROWID;
CREATE TABLE counts (
    model TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (model, number, kind, name)) WITHOUT ROWID;
CREATE TABLE charts (
    model TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, cusum REAL NOT NULL DEFAULT 0,
    begun INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL DEFAULT 0, since INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (model, kind, name)) WITHOUT ROWID;
CREATE TABLE excluded (
    model TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (model, kind, name, number)) WITHOUT ROWID;
CREATE TABLE alarms (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL,
    name TEXT NOT NULL, number INTEGER NOT NULL, message TEXT NOT NULL, told TEXT NOT NULL,
    delivery TEXT NOT NULL DEFAULT 'none');
CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, time REAL NOT NULL, model TEXT NOT NULL,
    labels TEXT NOT NULL, predicted TEXT NOT NULL, score REAL);
"""


class Store:
    """An open file; `writing` for its one writer, `all` and `one` for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileLock | None) -> None:
        self.path = path
        self._connection, self._file_lock = connection, lock
        self._lock = threading.RLock()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, changes are made together; an error undoes them."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def run(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Change something; how many rows were changed."""
        with self._lock:
            return self._connection.execute(statement, values).rowcount

    def run_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """The same change with many values."""
        with self._lock:
            self._connection.executemany(statement, values)

    def all(self, question: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows that answer a question."""
        with self._lock:
            return self._connection.execute(question, values).fetchall()

    def one(self, question: str, values: Sequence[Any] = ()) -> Any:
        """The first such row, or None."""
        with self._lock:
            return self._connection.execute(question, values).fetchone()

    def meta(self, key: str) -> str | None:
        """A value by its key."""
        found = self.one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if found is None else str(found[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a value under a key."""
        self.run("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (key, value))

    def close(self) -> None:
        """Bring the log into the file and let go of it."""
        with self._lock:
            if self._file_lock is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
            if self._file_lock is not None:
                self._file_lock.release()


def open_store(path: Path) -> Store:
    """Open a file for writing, or make one that only its owner may read.

    Raises:
        OutputError: another process writes to it, or it cannot be written.
        UserError: it is something else than a monitor's file.
    """
    with output_errors(path):
        lock = FileLock(path.with_name(path.name + ".lock"), mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            todo = "End the other process, or name another file."
            problem = Problem("a file that no other process writes to", "one in use", todo, Where(file=str(path)))
            raise OutputError(f"Another process watches with {path}.", [problem]) from None
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
            return Store(path, _opened(path), lock)
        except BaseException:
            lock.release()
            raise


def read_store(path: Path) -> Store:
    """Open a file for reading alone.

    Raises:
        UserError: it is not there, or something else than a monitor's file.
    """
    if not path.is_file():
        problem = Problem("a file that --monitor has written", "no such file", "Correct the path.", Where(str(path)))
        raise UserError(f"There is no monitor's file at {path}.", [problem])
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30, isolation_level=None)
        _check(path, connection)
    except sqlite3.DatabaseError as error:
        raise _no_store(path, str(error)) from None
    return Store(path, connection, None)


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA secure_delete = ON")  # texts whose time is over are overwritten
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            statements = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {FORMAT};"
            connection.executescript(f"BEGIN; {_SCHEMA} {statements} COMMIT;")
        _check(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _no_store(path, str(error)) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION:
        raise _no_store(path, "a file of another program")
    if version != FORMAT:
        raise _no_store(path, f"format {version}")


def _no_store(path: Path, got: str) -> UserError:
    todo = "Name another file, or use the Chainrule version that wrote it."
    problem = Problem(f"a monitor's file of format {FORMAT}", got, todo, Where(file=str(path)))
    return UserError(f"{path} is no file of a monitor that can be read.", [problem])
