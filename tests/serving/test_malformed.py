"""Whatever is sent, the answer is no 5xx and no silence. `CHAINRULE_REQUESTS=10000` sends so many."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

MANY = int(os.environ.get("CHAINRULE_REQUESTS", "200"))
MESSAGE = {"role": "user", "content": "film"}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/predict": {"inputs": ["film"], "model": "reviews"},
    "/v1/rank": {"query": "film", "items": ["good", {"text": "bad", "id": 1}], "model": "reviews"},
    "/v1/embeddings": {"input": ["film"], "model": "vectors", "encoding_format": "float", "dimensions": 32},
    "/v1/chat/completions": {
        "messages": [MESSAGE],
        "model": "helper",
        "max_tokens": 2,
        "stop": ["a"],
        "stream": False,
    },
    "/v1/completions": {"prompt": "film", "model": "helper", "max_tokens": 2, "seed": 1},
}

texts = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["", " ", "film", "\ud800", "\0", "data:image/png;base64,"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A good request of which some keys have another value, some are gone, or some are new."""
    path = draw(st.sampled_from(sorted(GOOD)))
    body = dict(GOOD[path])
    for key in draw(st.lists(st.sampled_from(sorted(body)), min_size=1, max_size=2)):
        if draw(st.booleans()):
            body[key] = draw(values)
        else:
            body.pop(key, None)
    if draw(st.booleans()):
        body[draw(texts | st.sampled_from(["beams", "temperature", "top_p", "messages", "inputs"]))] = draw(values)
    return path, body


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=MANY, suppress_health_check=list(HealthCheck))
@given(changed())
def test_changed_requests(client: httpx.Client, request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    check(client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}))


@settings(max_examples=MANY // 3, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "x"]))
def test_bytes_as_bodies(client: httpx.Client, path: str, body: bytes, kind: str) -> None:
    check(client.post(path, content=body, headers={"Content-Type": kind}))


@settings(max_examples=MANY // 6, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=1, max_size=300))
def test_bytes_that_are_no_http(server: Server, sent: bytes) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(sent + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(10_000)
    assert not answer.startswith(b"HTTP/1.1 5")


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """HTTP that is nearly right: methods, targets, headers and lengths that nobody means."""
    path = draw(st.sampled_from(sorted(GOOD)))
    body = json.dumps(GOOD[path]).encode()
    method = draw(st.sampled_from(["POST", "GET", "PUT", "HEAD", "OPTIONS", "CONNECT", "post", "P ST", ""]))
    target = draw(st.sampled_from([path, path + "?a=%ff%00", "//" + path, "*", "http://localhost" + path, "/%2e%2e/x"]))
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.", ""]))
    more = [
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Content-Length: 1",
        "Content-Length: -1",
        "Content-Length: 9" + "9" * 30,
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: x, chunked",
        "Expect: 100-continue",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Origin: https://elsewhere.example",
        "Authorization: Bearer \xff",
        "X-Request-ID: LONG",
        "X: LONGER",
        ": nothing",
        " folded",
    ]
    headers = draw(st.lists(st.sampled_from(more), max_size=6, unique=True)) + draw(st.sampled_from([more[:3], []]))
    head = "\r\n".join([f"{method} {target} {version}", *headers]).encode("latin-1")
    cut = draw(st.integers(0, len(body)))
    return head + b"\r\n\r\n" + draw(st.sampled_from([body, body[:cut], b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"]))


@settings(max_examples=MANY, suppress_health_check=list(HealthCheck), deadline=None)
@given(spoiled())
def test_http_that_is_nearly_right(server: Server, sent: bytes) -> None:
    sent = sent.replace(b"LONGER", b"y" * 70_000).replace(b"LONG", b"x" * 5_000)
    url = httpx.URL(server.url)
    answer = b""
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65_536):
                answer += piece
        except TimeoutError:
            raise
        except OSError:  # what is too long is not read to its end, and the connection may be gone already
            pass
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert [status for status in statuses if status >= b"500"] == [], answer[:500]


def test_it_still_answers(server: Server) -> None:
    assert server.post("/v1/predict", GOOD["/v1/predict"]).status_code == 200
    assert server.process.poll() is None
