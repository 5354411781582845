"""Requests from many clients at once, to `chainrule serve` and to a plain FastAPI server around a pipeline, in turn.

This process is the clients; each server is a process of its own with the same model and the same number of threads.
A client sends its next request as soon as it has an answer. Rounds alternate, so that a machine whose speed drifts
treats both alike. Prints a table (medians over rounds) and writes benchmarks/results/load.json.

    python benchmarks/load.py --clients 64 --rounds 5 --seconds 10
    python benchmarks/load.py --artifact runs/reviews --texts reviews.txt
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from workloads import DATA

import chainrule
from chainrule.system.device import physical_cores
from chainrule.testing.servers import start_server

OURS, PEER = "chainrule", "fastapi-pipeline"
RESULTS = HERE / "results" / "load.json"


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


async def load(url: str, texts: Sequence[str], clients: int, seconds: float) -> Turn:
    """Keep `clients` connections busy for some seconds."""
    place = urlsplit(url)
    numbers = count()
    latencies: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        while time.perf_counter() < end:
            text = texts[next(numbers) % len(texts)]
            body = json.dumps({"inputs": [text]}).encode()
            head = (
                "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}"
            )
            began = time.perf_counter()
            writer.write(head.encode() + b"\r\n\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            size = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.partition(b":")[2]))
            if answer.startswith(b"HTTP/1.1 200"):
                latencies.append(time.perf_counter() - began)
            else:
                errors += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Turn(len(latencies), time.perf_counter() - began, latencies, errors)


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


def turns(artifact: Path, texts: Sequence[str], options: argparse.Namespace) -> dict[str, dict[int, list[Turn]]]:
    """Both servers in turn: rounds of all clients, and of one alone."""
    found: dict[str, dict[int, list[Turn]]] = {name: {options.clients: [], 1: []} for name in (OURS, PEER)}
    ours = start_server([artifact, *options.flags], {"OMP_NUM_THREADS": str(options.threads)})
    peer, peer_url = plain_server(artifact, options.threads)
    urls = {OURS: ours.url, PEER: peer_url}
    try:
        for url in urls.values():  # warm
            asyncio.run(load(url, texts, options.clients, min(3.0, options.seconds)))
        for clients in (1, options.clients):
            for number in range(options.rounds):
                for name in list(urls)[:: 1 if number % 2 else -1]:
                    found[name][clients].append(asyncio.run(load(urls[name], texts, clients, options.seconds)))
    finally:
        peer.terminate()
        peer.wait()
        ours.end()
    return found


def summary(found: dict[str, dict[int, list[Turn]]]) -> list[dict[str, Any]]:
    """Medians over rounds."""
    return [
        {
            "server": name,
            "clients": clients,
            "rounds": len(rounds),
            "requests_per_second": round(median(turn.rate for turn in rounds), 1),
            "p50_ms": round(median(turn.percentile(0.50) for turn in rounds), 1),
            "p95_ms": round(median(turn.percentile(0.95) for turn in rounds), 1),
            "errors": sum(turn.errors for turn in rounds),
        }
        for name, by_clients in found.items()
        for clients, rounds in by_clients.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, help="a text classifier; by default one is made of minilm")
    parser.add_argument("--texts", type=Path, help="a text a line; by default those of banking77")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--flags", nargs="*", default=[], help="further words for `chainrule serve`")
    options = parser.parse_args()
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else requests_of_customers()
    with tempfile.TemporaryDirectory() as folder:
        artifact = options.artifact or trained(Path(folder))
        found = turns(artifact, texts, options)
    rows = summary(found)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    pairs = zip(found[OURS][options.clients], found[PEER][options.clients], strict=True)
    ratio = median(ours.rate / theirs.rate for ours, theirs in pairs)
    print(f"requests/s at {options.clients} clients: {ratio:.2f} times the plain server's (median over rounds)")
    document = {"threads": options.threads, "seconds": options.seconds, "ratio": round(ratio, 3), "servers": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
