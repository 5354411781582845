"""`chainrule` in a process of its own that begins at once: it is forked off one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from chainrule.cli import main

PRELOADED = (
    "chainrule.training.run",
    "chainrule.testing.kills",
    "chainrule.testing.processes",
    "chainrule.serving.app",
)


def prepared() -> ForkServerContext:
    """Where processes come from; the first one waits for the imports, the others do not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


class Command:
    """A command that runs, with what tests need of `subprocess.Popen`.

    It is a process with an environment, an exit code and signals of its own. What a start from nothing does besides
    (finding the program, importing it, ending the interpreter) is not in it.
    """

    def __init__(
        self, words: Sequence[str | Path], variables: Mapping[str, str] | None = None, within: Path | None = None
    ) -> None:
        folder = tempfile.mkdtemp(prefix="chainrule-said-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.stdout, self.stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        self.stdout.touch()
        self.stderr.touch()
        environment = {**os.environ, **(variables or {})}
        arguments = ([str(word) for word in words], environment, within or Path.cwd(), (self.stdout, self.stderr))
        self._process = prepared().Process(target=_carry_out, args=arguments, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative after a signal that it did not handle; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same, as `subprocess.Popen` calls it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"the process still runs after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said on stdout and on stderr, once it has ended."""
        self.wait(timeout)
        return self.stdout.read_text("utf-8"), self.stderr.read_text("utf-8")


def _carry_out(words: list[str], environment: dict[str, str], within: Path, files: tuple[Path, Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(within)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs do not hear it
    for number, name in enumerate(files, start=1):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    main(words)
