"""Alarms on their way to an address that the command line names: tried again, and kept where they never arrive."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chainrule.errors import Problem, RecipeError, Where
from chainrule.monitoring.store import Store
from chainrule.system.connections import reason

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts
TIMEOUT = 10.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The address that was named gets the alarm, and no other."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class Webhook:
    """Sends alarms from the monitor's file, one at a time, in a thread of its own.

    What a killed process had not sent is sent by the next: an alarm may arrive twice, and has its `id` for that.

    Args:
        say: told what goes wrong; the address is named without what may be secret in it.
        waits: seconds between attempts.
    """

    def __init__(self, store: Store, url: str, say: Callable[[str], None], waits: tuple[float, ...] = WAITS) -> None:
        self._store, self._url, self._say, self._waits = store, checked(url), say, waits
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._wake.set()
        self._thread.start()

    def notify(self) -> None:
        """There is something to send."""
        self._wake.set()

    def close(self) -> None:
        """Try what is left once more and end."""
        self._closing.set()
        self._wake.set()
        self._thread.join()

    @property
    def dead_letters(self) -> Path:
        """Where alarms go that could not be sent, a line each."""
        return self._store.path.with_name(self._store.path.name + ".undelivered.jsonl")

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            last = self._closing.is_set()
            question = "SELECT seq, time, model, kind, name, message, told FROM alarms WHERE delivery = 'pending'"
            for seq, *rest in self._store.all(f"{question} ORDER BY seq"):
                self._deliver(seq, _letter(seq, rest))
            if last:
                return

    def _deliver(self, seq: int, letter: dict[str, Any]) -> None:
        failed = ""
        for wait in (0.0, *self._waits):
            if wait and self._closing.wait(wait):
                return  # it stays in the file as pending, for the next process
            failed = self._attempt(letter)
            if not failed:
                self._mark(seq, "sent")
                return
        line = json.dumps(letter, ensure_ascii=False) + "\n"
        handle = os.open(self.dead_letters, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(line)
        self._mark(seq, "dead")
        attempts = len(self._waits) + 1
        told = f"warning: an alarm was not delivered to {without_path(self._url)} in {attempts} attempts ({failed})"
        self._say(f"{told}; it is in {self.dead_letters}.")

    def _attempt(self, letter: dict[str, Any]) -> str:
        """Send once; why it failed, or ""."""
        body = json.dumps(letter, ensure_ascii=False).encode("utf-8", "backslashreplace")
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return "" if 200 <= answer.status < 300 else f"HTTP status {answer.status}"
        except urllib.error.HTTPError as error:
            return f"HTTP status {error.code}"
        except (OSError, HTTPException) as error:
            return reason(error).replace(self._url, without_path(self._url))

    def _mark(self, seq: int, delivery: str) -> None:
        with self._store.writing():
            self._store.run("UPDATE alarms SET delivery = ? WHERE seq = ?", (delivery, seq))


def checked(url: str) -> str:
    """An address that alarms may be sent to.

    Raises:
        RecipeError: it is no address of HTTP.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port
    except ValueError:
        fine = False
    if not fine:
        problem = Problem(
            "an address such as https://hooks.example/alarms, without user and password",
            "something else",
            "Correct --webhook.",
            Where(field="webhook"),
        )
        raise RecipeError("Alarms cannot be sent there.", [problem])
    return url


def without_path(url: str) -> str:
    """The address as it may be logged: paths and queries of webhooks are secrets."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}/…"


def _letter(seq: int, rest: list[Any]) -> dict[str, Any]:
    time, model, kind, name, message, told = rest
    known = {"id": seq, "time": time, "model": model, "kind": kind, "name": name, "message": message}
    return {**known, **json.loads(told)}
