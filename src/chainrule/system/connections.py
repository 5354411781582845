"""Why a connection failed, in a few words that are safe to print."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit


def reason(error: BaseException) -> str:
    """The innermost cause that says something: a name that is not found, a refusal, an HTTP status, a time-out."""
    chain = list(causes(error))
    for cause in chain:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return f"HTTP status {status}"
    for cause in reversed(chain):
        if isinstance(cause, socket.gaierror):
            return "its address cannot be found: no network, or no name service"
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror.strip().lower()
    if any("timeout" in type(cause).__name__.lower() for cause in chain):
        return "no answer in time"
    lines = str(error).strip().splitlines()
    return _clean(lines[0])[:200] if lines else type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and every error behind it, outermost first."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]


def without_secrets(address: str) -> str:
    """The address without the user name and password it may carry."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _clean(text: str) -> str:
    return " ".join(without_secrets(word) if "://" in word and "@" in word else word for word in text.split())
