"""A cluster that is there already: two Ray nodes with a token, one worker on each."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chainrule.core.artifact import Run
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = [pytest.mark.unit, pytest.mark.slow]
Environment = dict[str, str]


def start_node(environment: Environment, log: Path, *where: str) -> subprocess.Popen[bytes]:
    """A node with one core, which stays in the foreground."""
    small = ("--num-cpus", "1", "--object-store-memory", str(100 * 2**20), "--block", "--disable-usage-stats")
    here = ("--node-ip-address", "127.0.0.1")
    with log.open("wb") as file:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *here, *small]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def wait_for(text: str, log: Path, node: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while text not in log.read_text(encoding="utf-8", errors="replace"):
        assert node.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        assert time.monotonic() < deadline
        time.sleep(0.2)


def end(node: subprocess.Popen[bytes]) -> None:
    """A node with everything that it has started."""
    processes = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
    for process in processes:
        process.kill()
    node.kill()
    node.wait(60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Environment]:
    """What a process needs in its environment to reach the two nodes."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, **known}
    nodes = []
    try:
        port = address.rpartition(":")[2]
        log = tmp_path / "head.log"
        nodes.append(start_node(environment, log, "--head", "--port", port, "--include-dashboard=false"))
        wait_for("block forever", log, nodes[0])
        log = tmp_path / "node.log"
        nodes.append(start_node(environment, log, "--address", address))
        wait_for("block forever", log, nodes[1])
        yield environment | {"RAY_ADDRESS": address}
    finally:
        for node in reversed(nodes):
            end(node)


def test_one_worker_a_machine(cluster: Environment, tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", sentences(150))
    tiny_model(tmp_path / "bert")
    words = ["train", "reviews.csv", "--model", "bert", "--epochs", "1", "--out", "run", "--engine", "ray"]
    command = [sys.executable, "-m", "chainrule", *words]
    done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Ray: 2 workers." in done.stderr
    assert Run(tmp_path / "run").summary["steps"] == 4
    assert json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))["workers"] == 2
    without = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = subprocess.run(
        [*command[:-4], "--out", "other", "--engine", "ray"],
        cwd=tmp_path,
        env=without | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert refused.returncode == 2, refused.stderr
    assert "and that its token is known here if it asks for one" in refused.stderr
