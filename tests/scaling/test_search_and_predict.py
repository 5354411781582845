"""Trials and predictions by workers of Ray: what one process would have found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.study import Study
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = [pytest.mark.unit, pytest.mark.slow]
RAY = ["--engine", "ray", "--workers", "2"]
SPACE = "optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\nstrategy.name: [full, head]\n"


def chainrule_does(words: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "chainrule", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_workers_make_the_trials_of_one_search(tmp_path: Path, reviews: Path) -> None:
    tiny_model(tmp_path / "bert")
    (tmp_path / "space.yaml").write_text(SPACE, encoding="utf-8")
    recipe = {"task": "text-classification", "model": "bert", "data": str(reviews)}
    training = {"training": {"threads": 1, "precision": "float32", "steps": 30}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | training), encoding="utf-8")
    words = ["search", "recipe.yaml", "--space", "space.yaml", "--budget", "20m", "--trials", "7", "--out", "study"]
    told = json.loads(chainrule_does([*words, *RAY, "--json"], tmp_path))
    assert len(told["trials"]) == 7
    done = [trial for trial in told["trials"] if trial["state"] == "complete"]
    assert told["selected"] == max(trial["metric"] for trial in done)
    assert told["test"] is not None
    study = Study(tmp_path / "study")
    assert study.summary["best"] == told["best"]
    assert (tmp_path / "study" / "run" / "report.html").is_file()


def test_two_workers_predict_what_one_process_does(tmp_path: Path, trained: Run) -> None:
    data = write_csv(tmp_path / "rows.csv", sentences(5000, seed=9))
    chainrule.predict(trained, data, out=tmp_path / "one.csv")
    printed = chainrule_does(["predict", str(trained.path), str(data), "--out", "two.csv", *RAY, "--json"], tmp_path)
    assert json.loads(printed)["rows"] == 5000
    one, two = (tmp_path / "one.csv").read_text(), (tmp_path / "two.csv").read_text()
    assert len(two.splitlines()) == 5001
    first = [line.rpartition(",") for line in one.splitlines()]
    second = [line.rpartition(",") for line in two.splitlines()]
    assert [line[0] for line in first] == [line[0] for line in second]
    scores = [[float(line[2]) for line in lines[1:]] for lines in (first, second)]
    assert scores[1] == pytest.approx(scores[0], abs=2e-3)
