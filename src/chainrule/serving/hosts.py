"""The names a server answers to: no web page elsewhere reaches it under a name of its own (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from chainrule.errors import Problem, UserError, Where

ANY = "*"
_LOOPBACK = ("localhost", "localhost.localdomain", "ip6-localhost")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")


@dataclass(frozen=True)
class Hosts:
    """Which values of the header `Host` are answered.

    Attributes:
        names: in lower case; addresses in their shortest form.
        addresses: whether any address in numbers will do; a name that somebody else can point here is none.
    """

    names: frozenset[str]
    addresses: bool = False

    def has(self, header: bytes) -> bool:
        """Whether a request that came with this header is meant for the server."""
        if ANY in self.names:
            return True
        name = _name_in(header.decode("latin-1"))
        address = _address(name)
        return name in self.names or (address is not None and (self.addresses or address.is_loopback))


def hosts_of(bound: str, more: Sequence[str] = ()) -> Hosts:
    """Loopback names, the address that is listened at, and what the command line adds.

    A server at all addresses of a computer answers to each of them, and to the computer's own name.

    Raises:
        UserError: one is no name of a host.
    """
    given = [name if name == ANY else _plain(name) for name in more]
    wrong = [name for name in given if name != ANY and _address(name) is None and not _NAME.fullmatch(name)]
    if wrong:
        problem = Problem(
            "a name such as models.example.com, without scheme and port, or * for any",
            repr(wrong[0][:80]),
            "Correct --allow-host.",
            Where(field="allow_host"),
        )
        raise UserError("The server cannot answer to this name.", [problem])
    address = _address(_plain(bound))
    everywhere = address is not None and address.is_unspecified
    own = [socket.gethostname().lower()] if everywhere else [_plain(bound)]
    return Hosts(frozenset([*_LOOPBACK, *own, *given]), everywhere)


def _name_in(header: str) -> str:
    """The host without its port."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::\d*)?", header.strip())
    return _plain(found[1]) if found else ""


def _plain(name: str) -> str:
    name = name.strip().lower().removesuffix(".").removeprefix("[").removesuffix("]")
    address = _address(name)
    return name if address is None else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
