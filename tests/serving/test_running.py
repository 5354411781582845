"""Under load, at the end, and with clients that are slow, gone, unknown or too many."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.testing.servers import Server, start_server

pytestmark = pytest.mark.unit

KEY, OTHER = "k" * 40, "another-key-of-forty-characters-or-so"
BEARER = {"Authorization": f"Bearer {KEY}"}
LONG = {"inputs": ["film warm"] * 1000, "model": "helper", "max_new_tokens": 60, "temperature": 50.0}


@pytest.fixture(scope="module")
def strict(
    start: Callable[..., Server], trained: Run, talking: Run, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A server with keys, short queues and little patience."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# who may ask\n{KEY}\nsha256:{hashlib.sha256(OTHER.encode()).hexdigest()}\n")
    flags = (
        "--keys",
        file,
        "--writing-queue",
        "2",
        "--reading",
        "1",
        "--timeout",
        "3",
        "--cors",
        "https://shop.example",
    )
    return start(trained.path, talking.path, *flags)


def test_every_accepted_request_is_answered_after_sigterm(trained: Run) -> None:
    """Of a server that is started and ended as a user does it; the other tests fork theirs."""
    server = start_server([trained.path])
    answers: list[int] = []
    failures: list[Exception] = []
    under_way = threading.Barrier(17)

    def ask() -> None:
        with server.client() as client:
            for number in range(10_000):
                try:
                    answer = client.post("/v1/predict", json={"inputs": ["the film was good"] * (1 + number % 40)})
                except httpx.TransportError as error:  # refused, or closed before anything was read
                    failures.append(error)
                    return
                answers.append(answer.status_code)
                if number == 2:
                    under_way.wait()

    clients = [threading.Thread(target=ask) for _ in range(16)]
    for client in clients:
        client.start()
    under_way.wait()
    code, told = server.end()
    for client in clients:
        client.join()
    assert code == 0, told
    assert set(answers) == {200}
    assert len(failures) == 16
    assert f"Ended: {len(answers):,} of {len(answers):,} accepted requests were answered." in told


def test_only_who_has_a_key_is_answered(strict: Server) -> None:
    body = {"inputs": ["good"], "model": "reviews"}
    for header in (None, "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer " + "é" * 40):
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        answer = strict.post("/v1/predict", body, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"] == {
            "message": "This server wants an API key: send the header `Authorization: Bearer KEY`.",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
    for key in (KEY, OTHER):
        assert strict.post("/v1/predict", body, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    with strict.client() as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert {client.get(path).status_code for path in ("/metrics", "/docs", "/openapi.json", "/v1/models")} == {401}


def test_web_pages_ask_only_where_they_are_named(strict: Server, server: Server) -> None:
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with strict.client() as client:
        allowed = client.options("/v1/predict", headers={"Origin": "https://shop.example", **wish})
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        assert (
            "access-control-allow-origin"
            not in client.options("/v1/predict", headers={"Origin": "https://other.example", **wish}).headers
        )
    with server.client() as client:
        answer = client.get("/v1/models", headers={"Origin": "https://shop.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_full_queue_sends_away_with_the_time_to_come_back(strict: Server) -> None:
    few = LONG | {"inputs": ["film warm"] * 16}
    with strict.client(headers=BEARER) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/predict", json=few), range(8)))
    statuses = {answer.status_code for answer in answers}
    assert 429 in statuses
    assert statuses <= {200, 429, 504}
    away = next(answer for answer in answers if answer.status_code == 429)
    assert int(away.headers["Retry-After"]) >= 1
    assert re.fullmatch(
        r"Too many rows are waiting \(\d+ of 2\)\. Try again in \d+ s\.", away.json()["error"]["message"]
    )
    assert away.json()["error"]["type"] == "rate_limit_error"


def test_a_request_that_takes_too_long_is_given_up(strict: Server) -> None:
    answer = strict.post("/v1/predict", LONG, headers=BEARER)
    assert answer.status_code == 504
    assert answer.json()["error"]["message"] == (
        "The request was not answered in time. Send fewer rows, ask for fewer tokens, or try again later."
    )
    _wait_until_idle(strict)
    assert strict.post("/v1/predict", {"inputs": ["good"], "model": "reviews"}, headers=BEARER).status_code == 200


def test_nothing_is_done_for_clients_that_have_gone(server: Server) -> None:
    before = _written(server)
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/predict", json=LONG | {"max_new_tokens": 100}, timeout=0.5)
    _wait_until_idle(server)
    assert _written(server) - before < 30_000  # all rows would have some 60,000 tokens
    turn = {"messages": [{"role": "user", "content": "film"}], "temperature": 50.0, "stream": True, "max_tokens": 100}
    with (
        server.client() as client,
        client.stream("POST", "/v1/chat/completions", json=turn | {"model": "helper"}) as stream,
    ):
        assert next(stream.iter_lines()).startswith("data: ")
    _wait_until_idle(server)


def _written(server: Server) -> float:
    with server.client() as client:
        counts = client.get("/metrics").text
    found = re.search(r'^chainrule_tokens_written_total\{model="helper"\} (.*)$', counts, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _wait_until_idle(server: Server) -> None:
    """Until no row is in the queue or in the model; a test that hangs here has found work for nobody."""
    with server.client(headers=BEARER) as client:
        while 'chainrule_rows_waiting{queue="write"} 0.0' not in client.get("/metrics").text:
            time.sleep(0.1)


def test_slow_clients_are_cut_off(strict: Server) -> None:
    with _socket(strict) as head:
        head.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n")
        assert head.recv(1000) == b""
    with _socket(strict) as body:
        start = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
        body.sendall(f"{start}Authorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = body.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        while piece := body.recv(10_000):
            answer += piece
        assert b"The body did not arrive within 1 s." in answer


def _socket(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 80), timeout=60)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--host", "0.0.0.0"],
            "Everybody in the network could use the models.\n  - field 'host': expected an API key for an address that "
            "other computers reach, got 0.0.0.0 without one. Name a file of keys (--keys FILE), set "
            "CHAINRULE_API_KEYS, or say --no-auth if anybody may ask.",
        ),
        (
            ["--port", "<port>"],
            "The server cannot listen there.\n  - field 'port': expected a free port, got port <port> of 127.0.0.1, "
            "which is in use. End what uses it, or choose another: --port N.",
        ),
        (
            ["--keys", "<keys>"],
            "The API keys cannot be used.\n  - <keys>, line 2: expected a key of at least 16 characters, got a "
            'shorter one. Draw one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        ),
        (
            ["--keys", "<none>"],
            "The API keys cannot be used.\n  - <none>: expected a key a line, got none. Write one into it.",
        ),
        (
            ["reviews=<run>"],
            "Two models have the same name.\n  - expected a name of its own for each model, got 'reviews' twice. "
            "Name them: NAME=FOLDER.",
        ),
        (
            ["--queue", "0"],
            "The limits of the server are wrong.\n  - field 'queue': expected greater than or equal to 1, got 0. "
            "Change 'queue'.",
        ),
    ],
)
def test_what_cannot_be_served(
    words: list[str], told: str, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\nshort\n")
    (tmp_path / "none").write_text("# nobody\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        known = {
            "<port>": str(port),
            "<keys>": str(tmp_path / "keys"),
            "<none>": str(tmp_path / "none"),
            "<run>": str(trained.path),
        }
        for name, value in known.items():
            words, told = [word.replace(name, value) for word in words], told.replace(name, value)
        free = [] if "--port" in words else ["--port", "0"]
        with pytest.raises(SystemExit) as stop:
            main(["serve", str(trained.path), *free, *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"Error: {told}\n"


@pytest.mark.parametrize("missing", ["chainrule.json", "config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_half_there(
    missing: str, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained.path / "artifact", tmp_path / "half")
    (folder / missing).unlink()
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(folder), "--port", "0"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert str(folder) in told
    assert "Traceback" not in told
