"""A million rows are checked, trained on and predicted, each in a process of its own, in memory that hardly grows.

What is counted is anonymous memory: pages of mapped files are given back whenever anything else needs the room.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from chainrule.testing.data import write_many
from chainrule.testing.models import tiny_model

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="tells mapped files apart from memory as Linux does"
    ),
]

FEW, MANY = 250_000, 1_000_000
# Bytes that a further row may take. Its text has about 90, and as a Python object 140.
CHECKED, TRAINED_ON, PREDICTED = 200, 300, 20
SETTINGS = (
    "training.steps=3",
    "training.threads=1",
    "data.validation_fraction=0.001",
    "data.test_fraction=0.001",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("million")
    tiny_model(made / "bert")
    for count in (FEW, MANY):
        for ending in ("csv", "jsonl"):
            write_many(made / f"{count}.{ending}", count)
    return made


def peak(folder: Path, *arguments: str) -> tuple[int, str]:
    """The most anonymous memory of one command in bytes, and what it printed."""
    settings = {"CHAINRULE_CACHE": str(folder / "cache"), "CHAINRULE_NATIVE": "0", "TOKENIZERS_PARALLELISM": "true"}
    settings |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}  # else it fills up to 1,024 shapes, some 90 MB, with any rows
    command = [sys.executable, "-m", "chainrule", *arguments, "--json"]
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen(command, cwd=folder, stdout=printed, env=os.environ | settings)
        watched, most = psutil.Process(process.pid), 0
        while process.poll() is None:
            memory = watched.memory_info()
            most = max(most, memory.rss - memory.shared)
            time.sleep(0.01)
    assert process.returncode == 0
    return most, (folder / "printed").read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_checking(folder: Path, ending: str) -> None:
    few, _ = peak(folder, "check", f"{FEW}.{ending}")
    many, printed = peak(folder, "check", f"{MANY}.{ending}")
    assert sum(split["rows"] for split in json.loads(printed)["splits"].values()) == MANY
    assert many - few < CHECKED * (MANY - FEW)


def test_training_and_predicting(folder: Path) -> None:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    trained, predicted = {}, {}
    for count in (FEW, MANY):
        out = f"run-{count}"
        trained[count], _ = peak(folder, "train", f"{count}.csv", "--model", "bert", "--out", out, *sets)
        assert json.loads((folder / out / "summary.json").read_text(encoding="utf-8"))["steps"] == 3
        predicted[count], _ = peak(folder, "predict", out, f"{count}.csv", "--out", f"{count}-predicted.csv")
        with (folder / f"{count}-predicted.csv").open("rb") as lines:
            assert sum(1 for _ in lines) == count + 1
    assert trained[MANY] - trained[FEW] < TRAINED_ON * (MANY - FEW)
    assert predicted[MANY] - predicted[FEW] < PREDICTED * (MANY - FEW)
