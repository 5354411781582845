"""Small files, small functions, and nothing in the repository that belongs to one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50  # without the docstring

# Exemptions, each with its reason. A name that no longer needs one must be removed (tested below).
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

# Written in pieces so that this file does not match itself.
ONE_MACHINE = re.compile(
    "|".join(
        [
            "(?<![A-Za-z0-9_.])/(?:" + "work|root|opt|Users" + ")/[A-Za-z0-9_.]",
            "(?<![A-Za-z0-9_.])/home" + "/(?!somebody)[a-z]",  # /home/somebody is a made-up path in tests
            r"[A-Za-z]:\\\\?" + "Users",
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            "npm" + r"js\.org",
            "--(?:extra-)?index" + "-url",
        ]
    )
)


def test_files_are_short(repository: Path) -> None:
    lengths = {
        name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in python_files(repository).items()
    }
    long = {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}
    assert {name: length for name, length in long.items() if name not in LONG_FILES} == {}
    assert set(LONG_FILES) <= set(long), "an exemption is no longer needed"


def test_functions_are_short(repository: Path) -> None:
    long = {}
    for name, file in python_files(repository).items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > MAX_FUNCTION_LINES:
                long[f"{name}:{node.name}"] = code_lines(node)
    assert {name: length for name, length in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(long), "an exemption is no longer needed"


def python_files(repository: Path) -> dict[str, Path]:
    package = repository / "src" / "chainrule"
    return {file.relative_to(package).as_posix(): file for file in sorted(package.rglob("*.py"))}


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_nothing_belongs_to_one_machine(repository: Path, tracked: list[Path]) -> None:
    found = []
    for file in tracked:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if ONE_MACHINE.search(line):
                found.append(f"{file.relative_to(repository)}:{number}: {line.strip()[:120]}")
    assert not found, "paths of one machine or hosts of a package index:\n" + "\n".join(found)


def test_constraints_are_an_exact_set(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", pin)] == []
    assert "torch==2.13.0" in pins


def test_every_pin_covers_a_dependency(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    section = text.partition("dependencies = [")[2].partition("]")[0]
    needed = {name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z0-9._-]+)', section)}
    assert needed - pinned == set()
