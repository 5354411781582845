"""Ray: a cluster that is there, in RAY_ADDRESS, or one of this machine alone for as long as it is needed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chainrule.core.engine import ADDRESS
from chainrule.errors import Problem, UserError, Where
from chainrule.system.device import physical_cores
from chainrule.system.extras import require
from chainrule.system.telemetry import SWITCHES
from chainrule.version import __version__

STORE_BYTES = 100 * 2**20  # of Ray's shared memory on this machine: rows and weights go through files
ANSWER_SECONDS = 10.0
_FROM_OUTSIDE = ("http://", "https://", "ray://")


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """The module `ray`, connected; afterwards it is not.

    Args:
        workers: how many there will be; a cluster of this machine alone has room for them.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: the cluster cannot be reached, or not from here.
    """
    ray = require("ray", extra="ray", purpose="--engine ray")
    address = os.environ.get(ADDRESS)
    if address is not None and address.startswith(_FROM_OUTSIDE):
        problem = Problem(
            where=Where(field=ADDRESS),
            expected="HOST:PORT of the cluster's head, from one of its machines",
            got=address,
            todo="From outside give the command, `chainrule … --engine ray`, with the address of the cluster's "
            f"dashboard, such as {ADDRESS}=http://HEAD:8265; it is submitted as a job.",
        )
        raise UserError("The cluster must be used from inside.", [problem])
    here = is_own()
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    if here:
        size = {"num_cpus": max(physical_cores(), workers), "object_store_memory": STORE_BYTES}
        how: dict[str, Any] = {"address": "local", **size, **quiet}
    else:
        how = {"address": address, "runtime_env": {"env_vars": dict(SWITCHES)}, **quiet}
        del how["include_dashboard"]
    try:
        if not here:
            _knock(str(address))
        ray.init(**how)
    except Exception as error:  # Ray raises plain ones where its processes do not start
        raise _unreachable(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def is_own() -> bool:
    """Whether the cluster is of this machine alone, and ends with this process."""
    return os.environ.get(ADDRESS) in (None, "local")


def _knock(address: str) -> None:
    """Make sure that something answers there, for which Ray itself would wait many minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def _unreachable(address: str | None, error: Exception) -> UserError:
    got = " ".join(str(error).split())[:300] or type(error).__name__
    if is_own():
        problem = Problem("a Ray of this machine", got, "See the logs in the folder ray of the temporary folder.")
        return UserError("Ray does not start.", [problem])
    problem = Problem(
        where=Where(field=ADDRESS),
        expected="a Ray cluster of the version that is installed here",
        got=f"{address}: {got}",
        todo=f"Check `ray status --address {address}`, and that its token is known here if it asks for one; or unset "
        f"{ADDRESS} for workers on this machine.",
    )
    return UserError("The Ray cluster cannot be used.", [problem])


def worker_count(asked: int | None, ray: Any) -> int:
    """As many as asked for; else one for each GPU of the cluster, or else one for each machine.

    A machine's cores work for one worker as well as for several.
    """
    if asked is not None:
        return asked
    alive = [node for node in ray.nodes() if node["Alive"]]
    return int(ray.cluster_resources().get("GPU", 0)) or max(1, len(alive))


def machines(ray: Any) -> int:
    """How many the cluster has."""
    return sum(1 for node in ray.nodes() if node["Alive"])


def cores_each(threads: int | None, workers: int, ray: Any) -> int:
    """What each worker takes: what the recipe says, else its part of what the cluster has."""
    return threads or max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)


def where_we_are() -> dict[str, str]:
    """What a worker must know of the process that gives it work."""
    return {"version": __version__, "folder": str(Path.cwd())}


def take_place(place: Mapping[str, str]) -> None:
    """In a worker: go where the command was given, so that its paths mean the same.

    Raises:
        UserError: this machine has another version of Chainrule, or no such folder.
    """
    require_same_version(place["version"])
    folder = Path(place["folder"])
    if not folder.is_dir():
        problem = Problem(
            where=Where(file=str(folder)),
            expected="the folder where the command was given, under the same path on every machine",
            got="no such folder on a worker's machine",
            todo="Work in a folder that all machines of the cluster share.",
        )
        raise UserError("A worker does not see the folder of the command.", [problem])
    os.chdir(folder)


def require_same_version(version: str) -> None:
    """Make sure that a worker runs what the command was given to.

    Raises:
        UserError: it runs another version.
    """
    if version != __version__:
        problem = Problem(
            expected=f"Chainrule {version}, as where the command was given",
            got=__version__,
            todo=f"Install chainrule=={version} on every machine of the cluster.",
        )
        raise UserError("A worker has another version of Chainrule.", [problem])
