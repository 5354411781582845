"""A cluster that is there already: two Ray nodes, one worker on each; from inside, and from outside as a job."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainrule.core.artifact import Run
from chainrule.testing.clusters import Environment, NamespaceError, free_port, plain_environment, two_hosts, two_nodes
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = [pytest.mark.unit, pytest.mark.slow]
WORDS = ["train", "reviews.csv", "--model", "bert", "--epochs", "1", "--engine", "ray"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "reviews.csv", sentences(150))
    tiny_model(tmp_path / "bert")
    return tmp_path


@pytest.fixture
def environment() -> Environment:
    """What nodes and those who reach them have in common: a token."""
    return plain_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})


@pytest.fixture
def cluster(environment: Environment, tmp_path: Path) -> Iterator[Environment]:
    """What a process needs in its environment to reach two nodes that ask for a token."""
    with two_nodes(tmp_path, environment) as address:
        yield environment | {"RAY_ADDRESS": address}


def chainrule_does(
    words: list[str], folder: Path, environment: Environment, before: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*(before or []), sys.executable, "-m", "chainrule", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def assert_two_workers(run: Path) -> None:
    assert Run(run).summary["steps"] == 4
    assert json.loads((run / "environment.json").read_text(encoding="utf-8"))["workers"] == 2


def test_one_worker_a_machine(cluster: Environment, folder: Path) -> None:
    done = chainrule_does([*WORDS, "--out", "run"], folder, cluster)
    assert done.returncode == 0, done.stderr
    assert "Ray: 2 workers." in done.stderr
    assert_two_workers(folder / "run")
    without = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = chainrule_does([*WORDS, "--out", "other"], folder, without | {"RAY_AUTH_MODE": "disabled"})
    assert refused.returncode == 2, refused.stderr
    assert "and that its token is known here if it asks for one" in refused.stderr


def test_two_hosts_that_a_cable_joins(environment: Environment, folder: Path) -> None:
    try:
        with two_hosts(folder, environment) as (address, enter):
            done = chainrule_does([*WORDS, "--out", "run"], folder, environment | {"RAY_ADDRESS": address}, enter)
    except NamespaceError as error:
        pytest.skip(f"no network namespaces here: {error}")
    assert done.returncode == 0, done.stderr
    assert_two_workers(folder / "run")


def test_a_command_from_outside_is_a_job_of_the_cluster(environment: Environment, folder: Path) -> None:
    port = free_port()
    head = ("--include-dashboard=true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(port))
    outside = environment | {"RAY_ADDRESS": f"http://127.0.0.1:{port}"}
    with two_nodes(folder, environment, head):
        done = chainrule_does([*WORDS, "--out", "run", "--json"], folder, outside)
        wrong = chainrule_does([*WORDS, "--set", "training.epoch=1", "--out", "other"], folder, outside)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "run"
    assert "Ray: 2 workers." in done.stderr
    assert_two_workers(folder / "run")
    assert wrong.returncode == 2, wrong.stderr
    assert "got the unknown key 'epoch'" in wrong.stdout
    assert not (folder / "other").exists()
