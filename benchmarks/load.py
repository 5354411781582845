"""Requests from many clients at once, to `chainrule serve` and to a plain FastAPI server around a pipeline, in turn.

This process is the clients; each server is a process of its own with the same model and the same number of threads.
A client sends its next request as soon as it has an answer; these rounds tell what a server can do, and how long one
request takes alone. Then requests come by themselves, at random moments (Poisson), as many as a share of what each
server can do; the time of such a request runs from the moment it was due. Rounds alternate, so that a machine whose
speed drifts treats both alike. Prints a table (medians over rounds) and writes benchmarks/results/load.json.

    python benchmarks/load.py --clients 64 --rounds 5 --seconds 10 --picture latency.svg
    python benchmarks/load.py --artifact runs/reviews --texts reviews.txt
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import DATA

import chainrule
from chainrule.system.device import physical_cores
from chainrule.testing.servers import start_server

OURS, PEER = "chainrule", "fastapi-pipeline"
RESULTS = HERE / "results" / "load.json"
KEPT_OPEN = 2.0  # seconds that a connection may rest; servers close those that rest for longer


@dataclass
class Turn:
    """What one round of one server gave."""

    requests: int
    seconds: float
    latencies: list[float]
    errors: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection:
    """One client of a server, kept open."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.host, self.port = place.hostname, place.port

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    async def ask(self, text: str) -> bytes | None:
        """The body of the answer; None where it is not 200."""
        body = json.dumps({"inputs": [text]}).encode()
        head = (
            "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}"
        )
        self.writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        size = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found = await self.reader.readexactly(int(size.partition(b":")[2]))
        return found if answer.startswith(b"HTTP/1.1 200") else None


async def load(url: str, texts: Sequence[str], clients: int, seconds: float) -> Turn:
    """Keep `clients` connections busy for some seconds."""
    numbers = count()
    latencies: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal errors
        connection = Connection(url)
        await connection.open()
        while (began := time.perf_counter()) < end:
            if await connection.ask(texts[next(numbers) % len(texts)]) is None:
                errors += 1
            else:
                latencies.append(time.perf_counter() - began)
        connection.writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Turn(len(latencies), time.perf_counter() - began, latencies, errors)


async def paced(url: str, texts: Sequence[str], rate: float, seconds: float, seed: int) -> Turn:
    """Requests that come at random moments, `rate` a second, over as many connections as it takes.

    A latency runs from the moment the request was due, so that a server that falls behind cannot hide it.
    """
    draw = random.Random(seed)
    idle: list[tuple[Connection, float]] = []
    latencies: list[float] = []
    errors = 0

    async def one(text: str, due: float) -> None:
        nonlocal errors
        connection, since = idle.pop() if idle else (Connection(url), -math.inf)
        if time.perf_counter() - since > KEPT_OPEN:
            connection = Connection(url)
            await connection.open()
        if await connection.ask(text) is None:
            errors += 1
        else:
            latencies.append(time.perf_counter() - due)
        idle.append((connection, time.perf_counter()))

    began = due = time.perf_counter()
    asked = []
    for number in count():
        due += draw.expovariate(rate)
        if due > began + seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(one(texts[number % len(texts)], due)))
    await asyncio.gather(*asked)
    spent = time.perf_counter() - began
    for connection, _ in idle:
        connection.writer.close()
    return Turn(len(latencies), spent, latencies, errors)


def plain_server(artifact: Path, threads: int) -> tuple[subprocess.Popen[bytes], str]:
    """The peer, when it takes requests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "peers" / "serve.py"), "--artifact", str(artifact), "--port", str(port)]
    process = subprocess.Popen([*command, "--threads", str(threads)])
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return process, f"http://127.0.0.1:{port}"
    raise RuntimeError("the plain server did not start")


def requests_of_customers() -> list[str]:
    """The test texts of banking77: 12 words in the mean."""
    with (DATA / "banking77" / "test.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def trained(folder: Path) -> Path:
    """A classifier of the requests of banking77, on the demo model; how good it is does not matter here."""
    settings = {"training.epochs": 0.1, "model": "minilm", "strategy": "head", "model.max_length": 128}
    return chainrule.train(str(DATA / "banking77"), out=folder / "run", settings=settings).path / "artifact"


def turns(artifact: Path, texts: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, list[Turn]]]:
    """Both servers in turn: rounds of one client alone, of all of them, and of a share of what each can do then."""
    alone, full = "1 client", f"{options.clients} clients"
    kinds = alone, full, f"{options.share:.0%} of capacity"
    found: dict[str, dict[str, list[Turn]]] = {name: {kind: [] for kind in kinds} for name in (OURS, PEER)}
    ours = start_server([artifact, *options.flags], {"OMP_NUM_THREADS": str(options.threads)})
    peer, peer_url = plain_server(artifact, options.threads)
    urls = {OURS: ours.url, PEER: peer_url}
    try:
        for url in urls.values():  # warm
            asyncio.run(load(url, texts, options.clients, min(3.0, options.seconds)))
        for kind in kinds:
            for number in range(options.rounds):
                for name in list(urls)[:: 1 if number % 2 else -1]:
                    if kind in (alone, full):
                        clients = 1 if kind == alone else options.clients
                        turn = asyncio.run(load(urls[name], texts, clients, options.seconds))
                    else:
                        rate = options.share * median(turn.rate for turn in found[name][full])
                        turn = asyncio.run(paced(urls[name], texts, rate, options.seconds, number))
                    found[name][kind].append(turn)
    finally:
        peer.terminate()
        peer.wait()
        ours.end()
    return found


def summary(found: dict[str, dict[str, list[Turn]]]) -> list[dict[str, Any]]:
    """Medians over rounds."""
    return [
        {
            "server": name,
            "load": kind,
            "rounds": len(rounds),
            "requests_per_second": round(median(turn.rate for turn in rounds), 1),
            "p50_ms": round(median(turn.percentile(0.50) for turn in rounds), 1),
            "p95_ms": round(median(turn.percentile(0.95) for turn in rounds), 1),
            "p99_ms": round(median(turn.percentile(0.99) for turn in rounds), 1),
            "errors": sum(turn.errors for turn in rounds),
        }
        for name, by_kind in found.items()
        for kind, rounds in by_kind.items()
    ]


def draw(found: dict[str, dict[str, list[Turn]]], path: Path) -> None:
    """A histogram of the latencies of each kind of load, both servers over each other."""
    kinds = list(found[OURS])
    figure, places = plt.subplots(len(kinds), 1, figsize=(7, 6), sharex=True, layout="constrained")
    every = [
        1000 * one for by_kind in found.values() for turns in by_kind.values() for t in turns for one in t.latencies
    ]
    edges = np.geomspace(min(every), max(every), 80)
    for place, kind in zip(places, kinds, strict=True):
        for name in (PEER, OURS):
            values = [1000 * one for turn in found[name][kind] for one in turn.latencies]
            place.hist(values, edges, weights=np.full(len(values), 100 / len(values)), alpha=0.65, label=name)
        place.set(title=kind, xscale="log", ylabel="% of requests")
    places[0].legend()
    places[-1].set_xlabel("ms from the moment a request is due to its answer")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, help="a text classifier; by default one is made of minilm")
    parser.add_argument("--texts", type=Path, help="a text a line; by default those of banking77")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--share", type=float, default=0.7, help="of what a server can do, for requests by themselves")
    parser.add_argument("--picture", type=Path, help="where to draw the latencies")
    parser.add_argument("--flags", nargs="*", default=[], help="further words for `chainrule serve`")
    options = parser.parse_args()
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else requests_of_customers()
    with tempfile.TemporaryDirectory() as folder:
        artifact = options.artifact or trained(Path(folder))
        found = turns(artifact, texts, options)
    rows = summary(found)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    full, alone = f"{options.clients} clients", "1 client"
    pairs = zip(found[OURS][full], found[PEER][full], strict=True)
    ratio = median(ours.rate / theirs.rate for ours, theirs in pairs)
    print(f"requests/s at {full}: {ratio:.2f} times the plain server's (median over rounds)")
    document = {"threads": options.threads, "seconds": options.seconds, "ratio": round(ratio, 3), "servers": rows}
    for name in (OURS, PEER):
        p50, p95 = (
            next(row[key] for row in rows if row["server"] == name and row["load"] == kind)
            for kind, key in ((alone, "p50_ms"), (f"{options.share:.0%} of capacity", "p95_ms"))
        )
        print(f"{name}: p95 at {options.share:.0%} of capacity is {p95 / p50:.2f} times the median of a request alone")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
