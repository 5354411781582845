"""One direction of imports, none of them hidden, and a command line that starts without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

# The only places where an import may stand in a function: the verbs (so that one verb loads only what it needs)
# and the door to optional packages.
MAY_IMPORT_LATE = ("api/", "system/extras.py")


def test_import_contract_holds(repository: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = os.environ | {"PYTHONPATH": str(repository / "src")}
    done = subprocess.run(
        [*command, "--no-cache"], cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_hidden_imports(repository: Path) -> None:
    package = repository / "src" / "chainrule"
    found = []
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        if name.startswith(MAY_IMPORT_LATE):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [f"{name}:{line} {text}" for line, text in late_imports(tree)]
    assert not found, "imports belong at the top of the file:\n" + "\n".join(found)


def late_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Imports that are not plain statements of the module, and calls that import by name."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in top:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_looking_needs_no_torch(arguments: list[str], repository: Path) -> None:
    program = (
        "import sys\n"
        "from chainrule.cli import main\n"
        "sys.argv = ['chainrule', *sys.argv[1:]]\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "print(f'exit {code or 0}, loaded {sorted(heavy)}', file=sys.stderr)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(repository / "src")}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1:] == ["exit 0, loaded []"], done.stdout + done.stderr
