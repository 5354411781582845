"""A command with --engine ray outside the cluster: what it says there is said here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TextIO

from chainrule import api
from chainrule.core.engine import outside_address


def submitted(words: Sequence[str]) -> int:
    """Give the command to the cluster, and hand on its words and its exit code.

    A job's stdout and stderr come as one; with --json the document at its end goes to stdout, and the rest to stderr.
    """
    sorted_out = Sorted("--json" in words)
    try:
        return api.submit(words, outside_address() or "", sorted_out.take)
    finally:
        sorted_out.end()


class Sorted:
    """Lines of a job.

    Args:
        with_document: a JSON document is expected at their end.
    """

    def __init__(self, with_document: bool) -> None:
        self.with_document, self.line, self.held = with_document, "", list[str]()

    def take(self, text: str) -> None:
        """Hand on what is no document; keep what may be one."""
        if not self.with_document:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self._take_line(line + "\n")

    def _take_line(self, line: str) -> None:
        if self.held and line.startswith("{"):  # what was held was none
            self._let_go(sys.stderr)
        if self.held or line.startswith("{"):
            self.held.append(line)
        else:
            sys.stderr.write(line)
            sys.stderr.flush()

    def end(self) -> None:
        """Hand on what is left."""
        if self.line:
            self._take_line(self.line)
            self.line = ""
        try:
            json.loads("".join(self.held))
        except ValueError:
            self._let_go(sys.stderr)
        else:
            self._let_go(sys.stdout)

    def _let_go(self, stream: TextIO) -> None:
        stream.write("".join(self.held))
        stream.flush()
        self.held.clear()
