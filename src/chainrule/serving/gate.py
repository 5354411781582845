"""What every request passes before anything reads it: the host, the key, the size of the body, and the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from chainrule.errors import ChainruleError
from chainrule.serving.hosts import Hosts
from chainrule.serving.keys import Keys
from chainrule.serving.limits import Limits
from chainrule.serving.metrics import Metrics
from chainrule.serving.refusal import RefusedError, answer_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz")  # what needs no key


class Gate:
    """An ASGI application around another. It counts what is accepted and what is answered.

    Attributes:
        accepted: requests that were let in.
        answered: those of them whose answer was handed over whole, and those whose client went away.
    """

    def __init__(self, app: App, keys: Keys, hosts: Hosts, limits: Limits, metrics: Metrics) -> None:
        self._app, self._keys, self._hosts, self._limits, self._metrics = app, keys, hosts, limits, metrics
        self.accepted = 0
        self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        self._metrics.open.inc()

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            async with asyncio.timeout(self._limits.reading):  # a client that takes nothing is let go
                await send(message)

        try:
            await self._pass(scope, receive, tell)
        except (TimeoutError, asyncio.CancelledError):
            status = status or 499  # nobody is there any more; the server closes the connection
        finally:
            self._metrics.open.dec()
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_host(scope)
            self._check_key(scope)
            body = await self._body(scope, receive)
        except ChainruleError as error:
            await answer_of(error)(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        self.accepted += 1
        try:
            await self._app(scope, again, send)
        finally:
            self.answered += 1

    def _check_host(self, scope: Scope) -> None:
        given = _header(scope, b"host")
        if not self._hosts.has(given):
            name = given.decode("latin-1")[:100]
            told = f"This server does not answer to the name {name!r}. If it is its own, start it with --allow-host."
            raise RefusedError(403, told, code="host_not_allowed")

    def _check_key(self, scope: Scope) -> None:
        preflight = scope["method"] == "OPTIONS"  # a browser sends no key with it, and nothing but headers is said
        if not self._keys or scope["path"] in OPEN or preflight:
            return
        kind, _, key = _header(scope, b"authorization").partition(b" ")
        if kind.lower() != b"bearer" or not self._keys.has(key.strip()):
            told = "This server wants an API key: send the header `Authorization: Bearer KEY`."
            raise RefusedError(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            RefusedError: it is too large, or comes too slowly.
        """
        most = self._limits.max_body
        told = f"The body has more than {most:,} bytes."
        size = _header(scope, b"content-length")
        if size.isdigit() and (len(size) > 18 or int(size) > most):
            raise RefusedError(413, told, code="body_too_large", headers={"Connection": "close"})
        pieces, length, more = list[bytes](), 0, True
        try:
            async with asyncio.timeout(self._limits.reading):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    pieces.append(message.get("body", b""))
                    length += len(pieces[-1])
                    more = message.get("more_body", False)
                    if length > most:
                        raise RefusedError(413, told, code="body_too_large", headers={"Connection": "close"})
        except TimeoutError:
            told = f"The body did not arrive within {self._limits.reading:g} s."
            raise RefusedError(408, told, code="slow_request", headers={"Connection": "close"}) from None
        return b"".join(pieces)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")
