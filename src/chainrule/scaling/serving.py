"""The server's application in several processes of a Ray cluster, behind the proxies of Ray Serve.

Each replica is the application that `chainrule serve` runs, with all models, its own queue and its own counters.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chainrule.core.artifact import Artifact
from chainrule.core.engine import ADDRESS
from chainrule.errors import ChainruleError, Problem, RecipeError, UserError, Where
from chainrule.scaling.cluster import cluster, cores_each, is_own, machines, take_place, where_we_are, worker_count
from chainrule.scaling.prediction import got
from chainrule.serving.hosts import hosts_of
from chainrule.serving.keys import Keys
from chainrule.serving.limits import Limits
from chainrule.serving.served import places_of
from chainrule.serving.server import Access, Operation, keys_of, listen, prepare, url_of
from chainrule.system.device import use_threads
from chainrule.system.extras import require
from chainrule.system.progress import Display, Quiet
from chainrule.system.stop import who_stopped

NAME = "chainrule"  # of the application in the cluster
STARTS = 1  # of a replica that does not come up, before all is given up: a damaged file stays one
_TOLD = "Chainrule could not begin: ", "(end)"  # around what a replica says, among what Ray Serve says of it


class Replica:
    """A server without a socket of its own, in another process.

    Args:
        place: what `take_place` takes.
        keys: who may ask; hashes, so that no file of keys need be there.
        cores: of its own.
    """

    def __init__(
        self,
        place: Mapping[str, str],
        places: Mapping[str, Path],
        keys: Keys,
        access: Access,
        limits: Limits,
        operation: Operation,
        cores: int,
    ) -> None:
        take_place(place)
        use_threads(cores)
        self.stack = ExitStack()
        try:
            self.gate = prepare(places, keys, access, limits, operation, Quiet(), self.stack)
        except ChainruleError as error:  # of an error Ray Serve hands on nothing but its text
            raise RuntimeError(" ".join(str(error).split()).join(_TOLD)) from None

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve asks for."""
        return self.gate


def serve_with_ray(
    artifacts: Sequence[str],
    access: Access,
    limits: Limits,
    operation: Operation,
    asked: int | None,
    display: Display,
    begun: Callable[[dict[str, Any]], None],
) -> None:
    """As `chainrule.serving.server.serve`, by replicas; on each machine of the cluster that has one, a proxy listens.

    Args:
        asked: how many replicas; None for one a GPU, or else one a machine.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        UserError: as `serve`; or the cluster cannot be used, or already serves.
        RecipeError: a monitor, whose file has one writer.
    """
    if operation.monitor is not None:
        todo = "Leave --monitor or --engine out; `chainrule watch` reads what is logged elsewhere."
        problem = Problem("one process, which alone writes that file", "several", todo, Where(field="monitor"))
        raise RecipeError("Replicas cannot be watched together.", [problem])
    keys = keys_of(access)
    hosts_of(access.host, access.hosts)
    places = places_of(artifacts)
    for path in places.values():
        Artifact.read(path)
    serve = require("ray.serve", extra="ray", purpose="chainrule serve --engine ray")
    with listen(access) as listener:  # whether it is free here; Ray listens itself
        port = listener.getsockname()[1]
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with cluster(asked or 1) as ray, _ending() as ending:
        workers = worker_count(asked, ray)
        for answer in [ray.remote(num_cpus=0)(take_place).remote(where_we_are()) for _ in range(machines(ray))]:
            got(ray, answer)
        with _proxies(ray, serve, access.host, port):
            cores = cores_each(None, workers, ray)
            gpus = int(ray.cluster_resources().get("GPU", 0) >= workers)
            display.say(f"Ray: {workers} replicas of {', '.join(places)}.")
            made = _deployment(serve, workers, limits, {"num_cpus": cores, "num_gpus": gpus})
            _begin(serve, made.bind(where_we_are(), places, keys, access, limits, operation, cores))
            url = url_of(access.host, port)
            display.say(f"Serving {', '.join(places)} at {url} ({url}/docs tells how to ask). Ctrl-C ends it.")
            ending.serving = True
            begun({"url": url, "models": list(places)})
            ending.asked.wait()
            display.say("Ending: what was accepted is answered.")
            serve.delete(NAME)


@contextmanager
def _proxies(ray: Any, serve: Any, host: str, port: int) -> Iterator[None]:
    """Ray Serve in this cluster, ended afterwards.

    Raises:
        UserError: somebody else serves with it, or a machine cannot listen.
    """
    if serve.status().proxies:
        problem = Problem(
            where=Where(field=ADDRESS),
            expected="a cluster that serves nothing yet, since its address and port are the same for all",
            got=f"one with {', '.join(serve.status().applications) or 'Ray Serve running'}",
            todo="End that first (`serve shutdown`), or take another cluster.",
        )
        raise UserError("The cluster already serves.", [problem])
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    try:
        serve.start("EveryNode", {"host": host, "port": port}, logging_config=quiet)
    except ray.exceptions.RayError as error:
        got, todo = " ".join(str(error).split())[:200], "Choose another: --host, --port."
        problem = Problem(f"{host} and port {port} free on every machine of the cluster", got, todo)
        raise UserError("The machines of the cluster cannot listen.", [problem]) from error
    try:
        yield
    finally:
        if not is_own():  # else all of it ends with this process
            with redirect_stdout(sys.stderr):  # where Ray says that its controller is gone
                serve.shutdown()


def _deployment(serve: Any, replicas: int, limits: Limits, resources: Mapping[str, Any]) -> Any:
    return serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=limits.queue + limits.writing_queue,  # what is too much the application itself refuses
        max_constructor_retry_count=STARTS,
        graceful_shutdown_timeout_s=limits.timeout + limits.reading,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options=dict(resources),
    )


def _begin(serve: Any, application: Any) -> None:
    """Wait until all replicas are there.

    Raises:
        UserError: one cannot begin.
    """
    try:
        serve.run(application, name=NAME, logging_config={"enable_access_log": False, "log_level": "ERROR"})
    except RuntimeError as error:
        overview = serve.status().applications.get(NAME)
        said = overview.deployments[NAME].message if overview and NAME in overview.deployments else str(error)
        told = said.rpartition(_TOLD[0])[2].partition(_TOLD[1])[0] if _TOLD[0] in said else said[-300:]
        todo = "Mend that; the logs of Ray Serve on the workers' machines tell more."
        problem = Problem("replicas that come up", " ".join(told.split()).rstrip("."), todo)
        raise UserError("The models cannot be served by this cluster.", [problem]) from error


@dataclass
class _Ending:
    """Ctrl-C and SIGTERM: they end a server that is starting as they end any program, and one that serves in peace."""

    serving: bool = False
    asked: threading.Event = field(default_factory=threading.Event)

    def hear(self, number: int, frame: Any) -> None:
        if not self.serving or self.asked.is_set():
            raise SystemExit(who_stopped(number)[1])
        self.asked.set()


@contextmanager
def _ending() -> Iterator[_Ending]:
    """Inside, the signals are heard, and Ray's own way with them is not."""
    ending = _Ending()
    before = {number: signal.signal(number, ending.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
