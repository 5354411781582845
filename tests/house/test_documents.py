"""What the documents say about the tree, the targets, the keys and each other is so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import chainrule
from chainrule.core.recipe import Recipe, parse_recipe
from chainrule.data.flaws import KINDS
from chainrule.evaluation.diagnosis import DETECTORS
from chainrule.models.scratch import SCRATCH
from chainrule.strategies import STRATEGIES, describe
from chainrule.tasks import TASKS
from chainrule.training.averaging import AVERAGES
from chainrule.training.optimizers import OPTIMIZERS
from chainrule.training.regularisers import REGULARISERS
from chainrule.training.schedules import SCHEDULES

pytestmark = pytest.mark.unit

Commands = Callable[[str], list[list[str]]]

TWINS = {
    "README.md": "README.zh-CN.md",
    "docs/chain-rule.md": "docs/zh/chain-rule.md",
    "docs/data.md": "docs/zh/data.md",
    "docs/compress.md": "docs/zh/compress.md",
    "docs/export.md": "docs/zh/export.md",
    "docs/gradients.md": "docs/zh/gradients.md",
    "docs/merge.md": "docs/zh/merge.md",
    "docs/planning.md": "docs/zh/planning.md",
    "docs/recipe.md": "docs/zh/recipe.md",
    "docs/scale.md": "docs/zh/scale.md",
    "docs/search.md": "docs/zh/search.md",
    "docs/serving.md": "docs/zh/serving.md",
    "docs/strategies.md": "docs/zh/strategies.md",
    "docs/tasks.md": "docs/zh/tasks.md",
    "docs/verdict.md": "docs/zh/verdict.md",
    "docs/watching.md": "docs/zh/watching.md",
    "SECURITY.md": "docs/zh/security.md",
}
DOCUMENTS = [*TWINS, *TWINS.values(), "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"]
MAP_LINE = re.compile(r"^(?:  )?([a-z_]+(?:/|\.py)) {2,}\S", re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md", "ARCHITECTURE.md"])
def test_map_of_folders_is_the_tree(document: str, repository: Path) -> None:
    package = repository / "src" / "chainrule"
    tree = {f"{entry.name}/" for entry in package.iterdir() if (entry / "__init__.py").is_file()}
    tree |= {entry.name for entry in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    text = (repository / document).read_text(encoding="utf-8")
    block = re.search(r"<!-- [^\n]*src/chainrule[^\n]* -->\n```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block, f"{document} has no map"
    names = MAP_LINE.findall(block[1])
    assert sorted(names) == sorted(tree)


@pytest.mark.parametrize(("document", "twin"), TWINS.items())
def test_twins_hold_the_same_commands(document: str, twin: str, shown_commands: Commands, repository: Path) -> None:
    assert shown_commands(document) == shown_commands(twin)
    assert python_blocks(repository / document) == python_blocks(repository / twin)
    assert headings(repository / document) == headings(repository / twin)


def python_blocks(file: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def headings(file: Path) -> list[str]:
    """The levels of the headings: twins have the same sections."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^(#+) ", text, re.MULTILINE)


def test_make_targets_exist(repository: Path, shown_commands: Commands) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named: set[str] = set()
    for document in DOCUMENTS:
        named |= {command[1] for command in shown_commands(document) if command[0] == "make"}
        named |= set(re.findall(r"`make ([a-z-]+)`", (repository / document).read_text(encoding="utf-8")))
    for file in (".pre-commit-config.yaml", ".ci/run"):
        named |= set(re.findall(r"^\s*(?:entry: )?make ([a-z-]+)", (repository / file).read_text(), re.MULTILINE))
    assert named - targets == set()
    assert {"quickstart", "test", "test-full", "test-house", "bench", "lint"} <= named


def test_continuous_integration_is_make_test(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    assert (repository / ".ci" / "packages").stat().st_mode & 0o111, ".ci/packages must be executable"
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', ".ci/packages", "make test"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str, repository: Path) -> None:
    file = repository / document
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        path, _, _ = target.partition("#")
        if path and "://" not in path and not (file.parent / path).exists():
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", ["docs/recipe.md", "docs/zh/recipe.md"])
def test_recipe_document_has_every_key_with_its_default(document: str, repository: Path) -> None:
    text = (repository / document).read_text(encoding="utf-8")
    block = re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    shown = parse_recipe(yaml.safe_load(block[1]))
    defaults = Recipe.model_validate({"task": "text-classification", "model": "minilm"})
    given = {"data": {"source", "fields"}}
    assert leaves(yaml.safe_load(block[1])) == leaves(defaults.model_dump(mode="json")) | {
        "data.fields.text",
        "data.fields.label",
    }
    assert shown.model_dump(exclude=given) == defaults.model_dump(exclude=given)


def leaves(value: dict[str, object], prefix: str = "") -> set[str]:
    found = set()
    for key, item in value.items():
        found |= leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}"}
    return found


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_shelves_are_documented(folder: str, repository: Path) -> None:
    tasks = (repository / folder / "tasks.md").read_text(encoding="utf-8")
    data = (repository / folder / "data.md").read_text(encoding="utf-8")
    recipe = (repository / folder / "recipe.md").read_text(encoding="utf-8")
    losses = [name for task in TASKS.values() for name in task.losses]
    parts = [*OPTIMIZERS, *SCHEDULES, *losses, *REGULARISERS, *AVERAGES]
    assert [name for name in parts if f"| `{name}` |" not in recipe] == []
    assert [kind for kind in KINDS if f"`{kind}`" not in data] == []
    options = [name for made in SCRATCH.values() for name in made.options.model_fields]
    assert [name for name in options if f"| `{name}` |" not in recipe] == []
    for task in TASKS.values():
        assert f"| `{task.name}` |" in tasks
        assert re.search(rf"\| `{task.name}` \|[^|]*\|[^|]*\| {task.primary_metric} \|", tasks)
        for field in task.fields:
            assert [alias for alias in field.aliases if not re.search(rf"\b{alias}\b", data)] == []


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_detectors_are_documented(folder: str, repository: Path) -> None:
    text = (repository / folder / "gradients.md").read_text(encoding="utf-8")
    told = [kind for kind in re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) if "-" in kind]
    assert told == [detector.kind for detector in DETECTORS]


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_strategies_are_documented(folder: str, repository: Path) -> None:
    """Each with its learning rate, and with the tasks that it goes together with."""
    text = (repository / folder / "strategies.md").read_text(encoding="utf-8")
    rates = dict(re.findall(r"^\| `([a-z0-9]+)` \|[^|]*\| ([0-9e.-]+) \|", text, re.MULTILINE))
    shelf = {row["name"]: row for row in describe(TASKS)}
    assert {name: float(rate) for name, rate in rates.items()} == {
        name: entry["default_learning_rate"] for name, entry in shelf.items()
    }
    table = [f"| | {' | '.join(TASKS)} |", f"|{'---|' * (len(TASKS) + 1)}"]
    for name, entry in shelf.items():
        marks = ["✓" if entry["tasks"][task] is None else "–" for task in TASKS]
        table.append(f"| `{name}` | {' | '.join(marks)} |")
    assert "\n".join(table) + "\n\n" in text, "the table is:\n" + "\n".join(table)
    for name in shelf:
        options = STRATEGIES[name].options.model_fields
        section = re.search(rf"^### (?:[a-z0-9, ]+, )?{name}\b[^#]*", text, re.MULTILINE)
        assert (section is not None) == bool(options), name
        assert [option for option in options if section and f"`{option}`" not in section[0]] == [], name


def test_the_picture_of_the_schedules_is_what_its_script_draws(repository: Path, tmp_path: Path) -> None:
    script = shutil.copy(repository / "docs" / "images" / "schedules.py", tmp_path)
    subprocess.run([sys.executable, script], check=True)
    drawn = (tmp_path / "schedules.svg").read_text(encoding="utf-8")
    assert drawn == (repository / "docs" / "images" / "schedules.svg").read_text(encoding="utf-8")


def test_public_names(repository: Path) -> None:
    """What `import chainrule` offers. A name that goes away needs a line in CHANGELOG.md."""
    assert list(chainrule.__all__) == sorted(chainrule.__all__)
    assert {"check", "evaluate", "predict", "show", "train"} <= set(chainrule.__all__)
    missing = [name for name in chainrule.__all__ if not hasattr(chainrule, name)]
    assert not missing
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bchainrule\.([a-z_]+)\(", readme)) <= set(chainrule.__all__)
