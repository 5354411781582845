"""Ray clusters of two nodes on this machine for tests, each started and ended as an administrator does it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

Environment = dict[str, str]
HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        return int(unused.getsockname()[1])


def plain_environment(variables: Mapping[str, str]) -> Environment:
    """This process's, without a cluster's address, and with this Python first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PATH": path, **variables}


def start_node(
    environment: Environment, log: Path, where: Sequence[str], host: str = HOST, before: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A node with one core, which stays in the foreground; back when it is up.

    Args:
        where: whether it is the head, or the head's address.
        before: words before the command, such as those that enter a network namespace.
    """
    small = ("--num-cpus", "1", "--object-store-memory", str(100 * 2**20), "--block", "--disable-usage-stats")
    command = [*before, sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--node-ip-address", host, *small]
    with log.open("wb") as file:
        node = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    deadline = time.monotonic() + 240
    while "block forever" not in (said := log.read_text(encoding="utf-8", errors="replace")):
        if node.poll() is not None or time.monotonic() > deadline:
            end_node(node)
            raise OSError(said)
        time.sleep(0.2)
    return node


def end_node(node: subprocess.Popen[bytes]) -> None:
    """A node with everything that it has started."""
    processes = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
    for process in processes:
        process.kill()
    node.kill()
    node.wait(60)


@contextmanager
def two_nodes(folder: Path, environment: Environment, head: Sequence[str] = ()) -> Iterator[str]:
    """Two nodes on this machine.

    Args:
        folder: of their logs.
        head: more words of the head's `ray start`.

    Yields:
        The head's address.
    """
    port, nodes = free_port(), list[subprocess.Popen[bytes]]()
    words = ("--head", "--port", str(port), *(head or ("--include-dashboard=false",)))
    try:
        nodes.append(start_node(environment, folder / "head.log", words))
        nodes.append(start_node(environment, folder / "node.log", ("--address", f"{HOST}:{port}")))
        yield f"{HOST}:{port}"
    finally:
        for node in reversed(nodes):
            end_node(node)


class NamespaceError(Exception):
    """This process may not make network namespaces."""


@contextmanager
def two_hosts(folder: Path, environment: Environment) -> Iterator[tuple[str, list[str]]]:
    """Two nodes in network namespaces of their own, joined by a cable: neither sees the other's loopback.

    Yields:
        The head's address, and the words that enter its namespace.

    Raises:
        NamespaceError: they cannot be made here.
    """
    names = [f"chainrule-{os.getpid()}-{side}" for side in "ab"]
    cables = [f"cr{os.getpid() % 100_000}{side}" for side in "ab"]
    hosts = ["10.201.7.1", "10.201.7.2"]
    nodes = list[subprocess.Popen[bytes]]()
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", cables[1], "netns", names[1])
        for name, cable, host in zip(names, cables, hosts, strict=True):
            _ip("-n", name, "address", "add", f"{host}/24", "dev", cable)
            for link in (cable, "lo"):
                _ip("-n", name, "link", "set", link, "up")
        enter = [["ip", "netns", "exec", name] for name in names]
        made = [{**environment, "GLOO_SOCKET_IFNAME": cable} for cable in cables]
        words = ("--head", "--port", "6379", "--include-dashboard=false")
        nodes.append(start_node(made[0], folder / "head.log", words, hosts[0], enter[0]))
        nodes.append(start_node(made[1], folder / "node.log", ("--address", f"{hosts[0]}:6379"), hosts[1], enter[1]))
        yield f"{hosts[0]}:6379", enter[0]
    finally:
        for node in reversed(nodes):
            end_node(node)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def _ip(*words: str) -> None:
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NamespaceError("network namespaces need iproute2 and root")
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespaceError(f"ip {' '.join(words)}: {done.stderr.strip()}")
