"""A server from its start to its end: the address, the models, the signals."""

from __future__ import annotations

import errno
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from chainrule.errors import Problem, UserError, Where
from chainrule.monitoring.monitor import Watched
from chainrule.monitoring.session import monitoring
from chainrule.monitoring.settings import Settings
from chainrule.monitoring.stream import watched_of
from chainrule.monitoring.windows import Alarm
from chainrule.serving.app import make_app
from chainrule.serving.connections import timed
from chainrule.serving.gate import Gate
from chainrule.serving.hosts import hosts_of
from chainrule.serving.keys import VARIABLE, Keys, read_keys
from chainrule.serving.limits import Limits
from chainrule.serving.memory import load_all
from chainrule.serving.reloading import Reloading
from chainrule.serving.routes import Service
from chainrule.serving.routing import read_routing
from chainrule.serving.served import Served, places_of
from chainrule.serving.watching import Watching
from chainrule.system.device import use_threads
from chainrule.system.progress import Display


@dataclass(frozen=True)
class Operation:
    """What a server does beside answering.

    Attributes:
        monitor: the file that predictions are kept in; None for none.
        settings: of the monitor.
        webhook: the address that alarms are sent to.
        split, shadows: as `routing` reads them.
        reload: seconds between looks for new versions of the models; None looks at SIGHUP alone.
        memory: bytes that the weights of all models may take together; None for any number.
    """

    monitor: Path | None = None
    settings: Settings = field(default_factory=Settings)
    webhook: str | None = None
    split: str | None = None
    shadows: tuple[str, ...] = ()
    reload: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Access:
    """Where a server listens, and who may ask.

    Attributes:
        keys: a file of API keys; None for those of the environment, or none.
        open: let anybody ask who reaches an address that others reach.
        origins: of web pages that may ask.
        hosts: names that it answers to, beside loopback's and that of the address.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    open: bool = False
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def serve(
    artifacts: Sequence[str],
    access: Access,
    limits: Limits,
    operation: Operation,
    display: Display,
    begun: Callable[[dict[str, Any]], None],
) -> dict[str, int]:
    """Serve models until SIGTERM or Ctrl-C; then what was accepted is answered.

    Args:
        artifacts: FOLDER or NAME=FOLDER.
        operation: what is done beside answering.
        begun: told the address and the models once requests are taken.

    Returns:
        How many requests were accepted and answered.

    Raises:
        UserError: the address cannot be had or needs a key, or a model cannot be loaded.
    """
    keys = keys_of(access)
    hosts_of(access.host, access.hosts)
    listener = listen(access)
    with ExitStack() as stack:
        stack.enter_context(listener)
        use_threads(None)
        places = places_of(artifacts)
        gate = prepare(places, keys, access, limits, operation, display, stack)
        url = url_of(access.host, listener.getsockname()[1])
        display.say(f"Serving {', '.join(places)} at {url} ({url}/docs tells how to ask). Ctrl-C ends it.")
        _run(gate, listener, limits, lambda: begun({"url": url, "models": list(places)}))
    display.say(f"Ended: {gate.answered:,} of {gate.accepted:,} accepted requests were answered.")
    return {"accepted": gate.accepted, "answered": gate.answered}


def prepare(
    places: Mapping[str, Path],
    keys: Keys,
    access: Access,
    limits: Limits,
    operation: Operation,
    display: Display,
    stack: ExitStack,
) -> Gate:
    """The application with its models loaded.

    Args:
        places: name -> folder of each model.
        stack: whose end closes what was opened.

    Raises:
        UserError: a model cannot be loaded, or the monitor's file not be used.
        RecipeError: models cannot share requests as asked.
    """
    gc.collect()
    gc.freeze()  # what was imported, half a million objects: to look through them holds answers up for 0.2 s
    stack.callback(gc.unfreeze)
    watched: dict[str, Watched] = {}

    def loaded(served: Served) -> None:
        if operation.monitor is not None:
            watched[served.name] = watched_of(served.predictor.artifact, served.predictor)

    models = load_all(places, operation.memory, loaded)
    service = Service(models, limits, budget=operation.memory, say=display.say)
    service.routing = read_routing(operation.split, operation.shadows, models)
    service.watching = _watching(service, operation, display, stack, watched)

    def taken(served: Served) -> None:
        if service.watching is not None:
            service.watching.monitor.renew(served.name, watched_of(served.predictor.artifact, served.predictor))

    reloading = Reloading(places, service.memory, service.metrics, taken, display.say, operation.reload)
    return make_app(service, keys, hosts_of(access.host, access.hosts), access.origins, reloading)


def _watching(
    service: Service, operation: Operation, display: Display, stack: ExitStack, watched: Mapping[str, Watched]
) -> Watching | None:
    """The monitor of a server, until the stack is closed."""
    if operation.monitor is None:
        return None
    monitor = stack.enter_context(
        monitoring(operation.monitor, operation.settings, watched, display.say, operation.webhook)
    )
    tell = monitor.alarmed

    def alarmed(alarm: Alarm) -> None:
        service.metrics.alarms.labels(alarm.model).inc()
        tell(alarm)

    monitor.alarmed = alarmed
    return Watching(monitor, service.metrics, display.say)


def keys_of(access: Access) -> Keys:
    """Who may ask.

    Raises:
        UserError: anybody in the network might, and it was not said that they may; or the keys cannot be read.
    """
    keys = Keys(()) if access.open else read_keys(access.keys)
    if keys or access.open or _is_loopback(access.host):
        return keys
    problem = Problem(
        where=Where(field="host"),
        expected="an API key for an address that other computers reach",
        got=f"{access.host} without one",
        todo=f"Name a file of keys (--keys FILE), set {VARIABLE}, or say --no-auth if anybody may ask.",
    )
    raise UserError("Everybody in the network could use the models.", [problem])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(access: Access) -> socket.socket:
    """A socket that is bound, before models are loaded.

    Raises:
        UserError: the address cannot be had.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)[0]
        # asyncio turns Nagle's algorithm off where it sees that a socket is TCP; else each answer waits 40 ms
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        in_use = error.errno == errno.EADDRINUSE
        problem = Problem(
            where=Where(field="port" if in_use else "host"),
            expected="a free port" if in_use else "an address of this computer",
            got=f"port {access.port} of {access.host}, which is in use"
            if in_use
            else f"{access.host} ({error.strerror})",
            todo="End what uses it, or choose another: --port N." if in_use else "Correct --host.",
        )
        raise UserError("The server cannot listen there.", [problem]) from None
    return listener


def url_of(host: str, port: int) -> str:
    """The address of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it takes requests."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()


def _run(gate: Gate, listener: socket.socket, limits: Limits, begun: Callable[[], None]) -> None:
    config = uvicorn.Config(
        gate,
        http=timed(limits.reading),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.timeout + limits.reading) + 1,
    )
    server = _Server(config, begun)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:  # uvicorn raises the signal that ended it once more, which is to do nothing
            signal.signal(number, lambda number, frame: None)
        server.run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
