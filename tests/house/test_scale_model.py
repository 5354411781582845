"""What docs/scale.md says of many GPUs is what the script computes, and the script adds up."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def script(repository: Path) -> Path:
    return repository / "benchmarks" / "scale_model.py"


@pytest.fixture(scope="module")
def model(script: Path) -> dict[str, Any]:
    return runpy.run_path(str(script))


@pytest.mark.parametrize("document", ["docs/scale.md", "docs/zh/scale.md"])
def test_the_tables_are_what_is_computed(document: str, script: Path, repository: Path) -> None:
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    tables = re.findall(r"(?:^\|.*\n)+", printed, re.MULTILINE)
    assert len(tables) == 5
    text = (repository / document).read_text(encoding="utf-8")
    assert [table for table in tables if table not in text] == []


def test_the_picture_is_what_is_computed(model: dict[str, Any]) -> None:
    assert model["SVG"].read_text(encoding="utf-8") == model["picture"]() + "\n"


def test_an_all_reduce_takes_what_a_ring_does(model: dict[str, Any]) -> None:
    """Each of 8 sends 7/8 of the bytes twice; over 2 machines, its eighth of half of them twice more."""
    machine, size = model["Machine"](latency=0.0, inside=1.0, between=1.0), 800.0
    assert model["collective"](machine, 8, size, rounds=2) == pytest.approx(2 * 700)
    assert model["collective"](machine, 16, size, rounds=2) == pytest.approx(2 * (700 + 50))


def test_sharding_divides_what_it_shards(model: dict[str, Any]) -> None:
    shape, machine, work = model["Model"](), model["Machine"](), model["Work"]()
    eight, sixteen = (model["full"](shape, machine, work, workers).memory for workers in (8, 16))
    assert eight - sixteen == pytest.approx(16 * shape.weights / 16)
    whole = [model["lora"](shape, machine, work, workers).memory for workers in (8, 16)]
    assert whole[0] == whole[1]


def test_the_operations_are_six_a_weight_and_token(model: dict[str, Any]) -> None:
    shape = model["Model"](layers=0)
    work = model["Work"](sequences=1, length=100, recompute=False)
    assert model["operations"](shape, work, full=True) == pytest.approx(6 * shape.weights * 100)
    assert model["operations"](shape, work, full=False) == pytest.approx(4 * shape.weights * 100)
