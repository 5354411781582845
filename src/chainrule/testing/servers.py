"""Servers that are processes of their own, started and ended as a user does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from chainrule.testing.processes import Command


@dataclass
class Server:
    """A server that runs.

    Attributes:
        models: their names.
    """

    process: subprocess.Popen[str] | Command
    url: str
    models: list[str]

    def client(self, **more: Any) -> httpx.Client:
        """A client of it; `more` goes to httpx."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """The answer to a JSON body."""
        with self.client() as client:
            return client.post(path, json=body, **more)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=60)
        return self.process.wait(), told


def start_server(words: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> Server:
    """Run `chainrule serve` with these words at a free port, and wait until it takes requests.

    Args:
        variables: of the environment, beside those there are.
    """
    command = [sys.executable, "-m", "chainrule", "serve", *map(str, words), "--port", "0", "--json"]
    environment = os.environ | dict(variables or {})
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    lines = []
    for line in process.stdout or []:
        lines.append(line)
        if line == "}\n":
            break
    about = json.loads("".join(lines) or "{}")
    if "url" not in about:
        raise RuntimeError("".join(lines) + process.communicate()[1])
    return Server(process, about["url"], about["models"])


def start_at_once(words: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> Server:
    """The same without the seconds of imports: forked off a process that has made them."""
    process = Command(["serve", *words, "--port", "0", "--json"], variables)
    while not (said := process.stdout.read_text("utf-8")).endswith("}\n"):
        if process.poll() is not None:
            break
        time.sleep(0.02)
    about = json.loads(said or "{}")
    if "url" not in about:
        raise RuntimeError("".join(process.communicate()))
    return Server(process, about["url"], about["models"])
