"""Searches of several processes on one PostgreSQL: each trial once, all of them kept; and a database that is gone."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import chainrule
from chainrule.core.recipe import parse_recipe
from chainrule.core.study import Study
from chainrule.errors import ChainruleError, LostError, OutputError
from chainrule.hpo.optuna_study import without_password
from chainrule.testing.databases import binaries, postgresql
from chainrule.testing.processes import prepared

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server here (Debian: apt-get install postgresql)"),
]
TRIALS = 7
SPACE: dict[str, Any] = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
SETTINGS: dict[str, Any] = {"training.threads": 1, "training.precision": "float32", "training.steps": 20}
PASSWORD = "gone@last:" + secrets.token_hex(8)


@pytest.fixture
def database() -> Iterator[str]:
    with postgresql(PASSWORD) as url:
        yield url


@pytest.fixture
def recipe(tiny_bert: Path, reviews: Path, tmp_path: Path) -> Path:
    made = parse_recipe({"task": "text-classification", "model": str(tiny_bert), "data": str(reviews)})
    file = tmp_path / "recipe.yaml"
    file.write_text(made.replace(SETTINGS).to_yaml(), encoding="utf-8")
    return file


def search(recipe: str, storage: str, out: str) -> None:
    how = {"budget": "20m", "trials": TRIALS, "storage": storage}
    chainrule.search(recipe=Path(recipe), space=SPACE, how=how, out=out)


def test_two_processes_share_the_trials_of_one_study(database: str, recipe: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name / "study" for name in ("first", "second")]
    context = prepared()
    workers = [context.Process(target=search, args=(str(recipe), database, str(out))) for out in outs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0, 0]
    told = [Study(out).summary for out in outs]
    last = max(told, key=lambda summary: sum(trial["state"] != "running" for trial in summary["trials"]))
    made = [trial for trial in last["trials"] if trial["state"] in ("complete", "pruned")]
    assert len(made) == TRIALS
    assert [trial["number"] for trial in last["trials"]] == list(range(len(last["trials"])))
    assert all(
        trial["note"] == "Other workers are making the last trials." for trial in last["trials"] if trial not in made
    )
    rates = [trial["values"]["optimizer.learning_rate"] for trial in made]
    assert len(set(rates)) == TRIALS
    assert all(trial["scores"] for trial in made)
    for out, summary in zip(outs, told, strict=True):
        assert Study(out).run.summary["steps"] == 20
        assert summary["storage"].startswith("postgresql://chainrule:***@")
        assert PASSWORD not in (out / "study.json").read_text() + (out / "report.html").read_text(encoding="utf-8")
        assert out.stat().st_mode & 0o077 == 0
        assert json.loads((out / "search.json").read_text())["settings"]["storage"] == database


def test_a_database_that_is_gone(recipe: Path, tmp_path: Path) -> None:
    with postgresql(PASSWORD) as url:
        worker = Going(recipe, url, tmp_path / "study")
        worker.wait_for_a_trial()
    with pytest.raises(LostError) as lost:
        worker.end()
    said = str(lost.value)
    assert said.startswith(
        "The database of the study no longer answers.\n  - field 'storage': expected a database that"
    )
    assert f"Go on with: chainrule search --resume {tmp_path / 'study'}" in said
    assert_no_password(said)
    with pytest.raises(OutputError) as unreachable:
        chainrule.resume_search(tmp_path / "study")
    said = str(unreachable.value)
    assert said.startswith(
        "The study cannot be kept there.\n  - field 'storage': expected a database that Optuna can use"
    )
    assert "got postgresql://chainrule:***@/postgres: " in said
    assert "No such file or directory" in said or "Connection refused" in said
    assert_no_password(said)


def test_a_wrong_password(database: str, recipe: Path, tmp_path: Path) -> None:
    wrong = "wrong" + secrets.token_hex(8)
    url = database.replace(quote(PASSWORD, safe=""), wrong)
    with pytest.raises(OutputError) as refused:
        search(str(recipe), url, str(tmp_path / "study"))
    assert "password authentication failed" in str(refused.value)
    assert wrong not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5433/name", "postgresql://me:***@host:5433/name"),
        ("postgresql://me:secret@host", "postgresql://me:***@host"),
        ("postgresql://host/name?user=me&password=secret", "postgresql://host/name"),
        ("postgresql://me:sec@ret@host/name", "postgresql://…"),
        ("postgresql:me:secret@host", "postgresql://…"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def assert_no_password(said: str) -> None:
    assert PASSWORD not in said
    assert quote(PASSWORD, safe="") not in said


def _go(recipe: str, storage: str, out: str, told: Any) -> None:
    try:
        search(recipe, storage, out)
    except ChainruleError as error:
        told.put((type(error).__name__, str(error)))


class Going:
    """A search in a process of its own."""

    def __init__(self, recipe: Path, storage: str, out: Path) -> None:
        context = prepared()
        self.out, self.told = out, context.Queue()
        self.process = context.Process(target=_go, args=(str(recipe), storage, str(out), self.told))
        self.process.start()

    def wait_for_a_trial(self) -> None:
        """Until the first one has ended."""
        file = self.out / "search.json"
        while not (file.is_file() and '"spent"' in file.read_text(encoding="utf-8")):
            assert self.process.is_alive()
            time.sleep(0.02)

    def end(self) -> None:
        """Raises what it has raised."""
        name, text = self.told.get(timeout=300)
        self.process.join(60)
        raise {"LostError": LostError}[name](text)
