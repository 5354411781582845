"""The names that a server answers to."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from chainrule.core.artifact import Run
from chainrule.errors import UserError
from chainrule.serving.hosts import hosts_of
from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

LOOPBACK = ["localhost", "LOCALHOST:8000", "localhost.:80", "127.0.0.1", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"]
FOREIGN = ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "192.168.1.7", "x:y", "[::1", "é"]


@pytest.mark.parametrize("name", LOOPBACK)
def test_loopback_is_answered_wherever_it_listens(name: str) -> None:
    for bound in ("127.0.0.1", "::1", "0.0.0.0", "models.example"):
        assert hosts_of(bound).has(name.encode())


@pytest.mark.parametrize("name", FOREIGN)
def test_other_names_are_not(name: str) -> None:
    assert not hosts_of("127.0.0.1").has(name.encode("latin-1"))
    assert hosts_of("127.0.0.1", ["*"]).has(name.encode("latin-1"))


def test_the_address_and_what_the_command_line_adds() -> None:
    assert hosts_of("192.168.1.7").has(b"192.168.1.7:8000")
    assert not hosts_of("192.168.1.7").has(b"192.168.1.8:8000")
    everywhere = hosts_of("0.0.0.0")
    assert everywhere.has(b"192.168.1.8:8000")
    assert everywhere.has(b"[2001:db8::1]:8000")
    assert everywhere.has(socket.gethostname().encode())
    assert not everywhere.has(b"evil.example")
    added = hosts_of("127.0.0.1", ["Models.Example.com", "2001:DB8:0::1"])
    assert added.has(b"models.example.com:443")
    assert added.has(b"[2001:db8::1]")


@pytest.mark.parametrize("name", ["", "http://models.example", "models.example:80", "a b", "-x"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UserError) as refused:
        hosts_of("127.0.0.1", [name])
    assert str(refused.value) == (
        "The server cannot answer to this name.\n  - field 'allow_host': expected a name such as models.example.com, "
        f"without scheme and port, or * for any, got {name.lower()!r}. Correct --allow-host."
    )


def test_a_page_elsewhere_reaches_nothing_under_its_own_name(server: Server) -> None:
    for path in ("/v1/models", "/docs", "/healthz", "/metrics"):
        with server.client(headers={"Host": "evil.example"}) as client:
            answer = client.get(path)
        assert answer.status_code == 403
        assert answer.json()["error"] == {
            "message": "This server does not answer to the name 'evil.example'. "
            "If it is its own, start it with --allow-host.",
            "type": "invalid_request_error",
            "param": None,
            "code": "host_not_allowed",
        }


def test_a_name_that_is_allowed(start: Callable[..., Server], trained: Run) -> None:
    server = start(trained.path, "--allow-host", "models.example")
    with server.client(headers={"Host": "models.example"}) as client:
        assert client.get("/healthz").status_code == 200
    with server.client(headers={"Host": "other.example"}) as client:
        assert client.get("/healthz").status_code == 403
    server.end()
