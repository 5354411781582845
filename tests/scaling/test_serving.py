"""The server's application in replicas of Ray Serve: the same answers, behind one address."""

from __future__ import annotations

import csv
import secrets
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import RecipeError
from chainrule.testing.clusters import HOST, end_node, free_port, plain_environment, start_node
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.servers import Server, start_server

KEY = "k" * 40
ROWS = sentences(60, seed=5)
TEXTS = [row["text"] for row in ROWS]


@pytest.mark.unit
def test_replicas_have_no_monitor(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        chainrule.serve(trained.path, engine=chainrule.Engine("ray", 2), monitor=tmp_path / "m.db")
    assert str(caught.value) == (
        "Replicas cannot be watched together.\n  - field 'monitor': expected one process, which alone writes that "
        "file, got several. Leave --monitor or --engine out; `chainrule watch` reads what is logged elsewhere."
    )


@pytest.mark.unit
@pytest.mark.slow
def test_replicas_answer_as_one_server_and_come_back(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(KEY + "\n", encoding="utf-8")
    words = ["--engine", "ray", "--workers", "2", "--keys", str(tmp_path / "keys.txt"), "--max-rows", "100"]
    server = start_server([f"films={trained.path}", *words])
    try:
        assert server.models == ["films"]
        assert server.post("/v1/predict", {"inputs": TEXTS}).status_code == 401
        chainrule.predict(trained, write_csv(tmp_path / "rows.csv", ROWS), out=tmp_path / "predicted.csv")
        with (tmp_path / "predicted.csv").open(encoding="utf-8", newline="") as file:
            assert _labels(server) == [row["predicted_label"] for row in csv.DictReader(file)]
        with _client(server) as client:
            assert client.post("/v1/predict", json={"inputs": TEXTS * 2}).status_code == 413
            assert client.get("/v1/models").json()["data"][0]["id"] == "films"
        replicas = [process for process in psutil.process_iter() if "ServeReplica:chainrule" in process.name()]
        ours = [one for one in replicas if server.process.pid in {parent.pid for parent in one.parents()}]
        assert len(ours) == 2
        ours[0].kill()
        assert all(_labels(server, patience=60) for _ in range(20))
    finally:
        answers, (code, told) = _end_under_load(server)
    assert code == 0, told
    assert set(answers) == {200, 404}  # 404 is the proxy's, once nothing is accepted any more
    assert "Ending: what was accepted is answered." in told


@pytest.mark.unit
@pytest.mark.slow
def test_a_damaged_model_is_named(trained: Run, tmp_path: Path) -> None:
    damaged = shutil.copytree(trained.path / "artifact", tmp_path / "damaged")
    with (damaged / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(RuntimeError) as caught:
        start_server([damaged, "--engine", "ray", "--workers", "1"])
    assert "The models cannot be served by this cluster." in str(caught.value)
    assert "model.safetensors, field 'model.name': expected a whole safetensors file" in str(caught.value)


@pytest.mark.unit
@pytest.mark.slow
def test_a_cluster_that_serves_is_left_alone(trained: Run, tmp_path: Path) -> None:
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port, environment = free_port(), plain_environment(secret)
    words = ("--head", "--port", str(port), "--include-dashboard=false")
    node, inside = start_node(environment, tmp_path / "head.log", words), {**secret, "RAY_ADDRESS": f"{HOST}:{port}"}
    try:
        server = start_server([f"films={trained.path}", "--engine", "ray", "--workers", "1"], inside)
        with pytest.raises(RuntimeError) as caught:
            start_server([trained.path, "--engine", "ray", "--workers", "1"], inside)
        assert "The cluster already serves." in str(caught.value)
        assert '"got": "one with chainrule"' in str(caught.value)
        assert server.post("/v1/predict", {"inputs": TEXTS[:2]}).status_code == 200
        code, told = server.end(signal.SIGTERM)
    finally:
        end_node(node)
    assert code == 0, told


def _client(server: Server) -> httpx.Client:
    return server.client(headers={"Authorization": f"Bearer {KEY}"})


def _labels(server: Server, patience: float = 0.0) -> list[str]:
    """What the server says; asked again, for some seconds, where a replica was lost with the question."""
    until = time.monotonic() + patience
    while True:
        with _client(server) as client:
            answer = client.post("/v1/predict", json={"inputs": TEXTS})
        if answer.status_code == 200:
            return [row["label"] for row in answer.json()["predictions"]]
        assert time.monotonic() < until, answer.text
        time.sleep(0.2)


def _end_under_load(server: Server) -> tuple[list[int], tuple[int, str]]:
    """The status of each answer that clients got until the end, the exit code, and what was said."""
    answers: list[int] = []
    under_way = threading.Barrier(5, timeout=120)  # an answer that is not 200 must not hang it

    def ask() -> None:
        with _client(server) as client:
            for number in range(10_000):
                answers.append(client.post("/v1/predict", json={"inputs": TEXTS[: 1 + number % 60]}).status_code)
                if answers[-1] != 200:
                    return
                if number == 2:
                    under_way.wait()

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    under_way.wait()
    ended = server.end(signal.SIGTERM)
    for client in clients:
        client.join()
    return answers, ended
