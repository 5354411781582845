"""What the house tests share: the repository, its files, and the commands that its documents show."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?:console|bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tracked(repository: Path) -> list[Path]:
    """Every file that git tracks or would add, as absolute paths."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=repository, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout, so there is no list of its files")
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [path for path in (repository / name for name in names) if path.is_file()]


@pytest.fixture(scope="session")
def shown_commands(repository: Path) -> Callable[[str], list[list[str]]]:
    """A function from a document's name to the shell commands in its code fences, in order, split into words."""

    def read(document: str) -> list[list[str]]:
        text = (repository / document).read_text(encoding="utf-8")
        found = []
        for block in FENCE.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.removeprefix("$ ").strip()
                if command.startswith(("chainrule ", "make ", "pip ")):
                    found.append(shlex.split(command, comments=True))
        return found

    return read
