"""Whatever is read ends in success or in a ChainruleError with a place: changed files, odd values, guided bytes.

CHAINRULE_FUZZ says how many inputs in all; `make faults` asks for many. CHAINRULE_FUZZ_SEED repeats a run, and a crash
names the input that `Target.input` makes again.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from chainrule.core.artifact import MANIFEST, Artifact, Manifest
from chainrule.core.parsing import merge
from chainrule.core.recipe import Data, Recipe, parse_recipe
from chainrule.data.load import load
from chainrule.errors import ChainruleError, DataError
from chainrule.tasks import TASKS
from chainrule.testing.hostile import attack, shares
from chainrule.testing.readers import GROUPS

pytestmark = pytest.mark.unit
INPUTS = int(os.environ.get("CHAINRULE_FUZZ", "2000"))
SEED = int(os.environ.get("CHAINRULE_FUZZ_SEED", "20261122"))
CHANGED = {
    "rows": 0.3,
    "recipes": 0.2,
    "artifacts": 0.08,
    "reference": 0.02,
    "baselines": 0.04,
    "models": 0.02,
    "runs": 0.04,
}  # shares; the rest is structured
EACH = round(INPUTS * (1 - sum(CHANGED.values())) / 5)

structured = settings(
    max_examples=max(EACH, 1), deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["\ud800", "\0", "", " ", "1e999", "NaN", '["a", "\\ud800"]', "[" * 2_000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, 10**19, -(2**63)]) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["text", "text_a", "text_b", "label", "labels", "score", "prompt", "response", "messages", "x"])
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUES, "content": TEXTS | VALUES}
)


@pytest.mark.parametrize("group", GROUPS)
def test_changed_files_end_well(group: str, tmp_path: Path) -> None:
    crashes: dict[str, str] = {}
    for target, inputs in shares(GROUPS[group](tmp_path), round(INPUTS * CHANGED[group])):
        tally = attack(target, inputs, SEED)
        print(f"seed {SEED}, {inputs:,} changed files for {target.name}: {tally}")
        crashes |= tally.crashes
    assert not crashes, "\n".join(f"{place}\n    {what}" for place, what in crashes.items())


def checked(source: Any, task: str) -> None:
    with contextlib.suppress(DataError):
        report = load(source, Data(), TASKS[task]).report
        assert json.dumps(report.as_dict(), ensure_ascii=False).encode()


@seed(SEED)
@structured
@given(
    rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=6), task=st.sampled_from(list(TASKS))
)
def test_objects_of_anything(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], task: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "objects.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    checked(path, task)
    path = folder / "objects.json"
    path.write_text(json.dumps(rows), encoding="ascii")
    checked(path, task)


@seed(SEED)
@structured
@given(rows=st.lists(st.lists(TURNS, max_size=4) | VALUES, min_size=1, max_size=5), inside=st.booleans())
def test_conversations_of_anything(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], inside: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "chats.jsonl"
    cells = [json.dumps(row) if inside else row for row in rows]
    path.write_text("".join(json.dumps({"messages": cell}) + "\n" for cell in cells), encoding="ascii")
    checked(path, "text-generation")


@seed(SEED)
@structured
@given(
    names=st.lists(NAMES, min_size=1, max_size=4),
    rows=st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=6),
    task=st.sampled_from(list(TASKS)),
)
def test_cells_of_anything(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], rows: list[list[str]], task: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file, contextlib.suppress(csv.Error):
        csv.writer(file).writerows([names, *rows])
    checked(path, task)


KEYS = st.sampled_from(
    [
        *(
            f"{part}.{key}"
            for part, section in Recipe.model_fields.items()
            for key in getattr(section.annotation, "model_fields", ())
        ),
        *Recipe.model_fields,
        "strategy.options.rank",
        "x.y.z",
    ]
) | st.text(max_size=9)


@seed(SEED)
@structured
@given(changes=st.dictionaries(KEYS, VALUES, max_size=4))
def test_recipes_of_anything(changes: dict[str, Any]) -> None:
    with contextlib.suppress(ChainruleError):
        recipe = parse_recipe(merge({"task": "text-classification", "model": "minilm"}, changes))
        assert recipe.to_yaml().encode()
        assert json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False).encode()


@seed(SEED)
@structured
@given(changes=st.dictionaries(st.sampled_from(list(Manifest.model_fields)), VALUES, min_size=1, max_size=3))
def test_manifests_of_anything(
    tmp_path_factory: pytest.TempPathFactory, trained_manifest: dict[str, Any], changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / MANIFEST
    path.write_text(json.dumps(trained_manifest | changes), encoding="ascii")
    with contextlib.suppress(ChainruleError):
        assert Artifact.read(path.parent).manifest.model_dump_json().encode()


@pytest.fixture(scope="module")
def trained_manifest() -> dict[str, Any]:
    manifest = Manifest(
        chainrule_version="0",
        task="text-classification",
        labels=("a", "b"),
        inputs=("text",),
        fields={"text": "text"},
        max_length=64,
        base_model="minilm",
        recipe={"data": {}},
        metrics={"accuracy": 0.5},
        primary_metric="accuracy",
        data={},
        loads_in=("transformers",),
        weights_sha256="00",
    )
    return manifest.model_dump(mode="json")


@pytest.mark.skipif("CHAINRULE_FUZZ" not in os.environ, reason="guided by coverage only in `make faults`")
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install chainrule[fuzz]")
@pytest.mark.parametrize("group", GROUPS)
def test_bytes_guided_by_coverage_end_well(group: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("coverage_guided.py")
    inputs = max(1, round(INPUTS * CHANGED[group]))
    command = [sys.executable, str(script), group, str(tmp_path), str(inputs), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-6_000:]
