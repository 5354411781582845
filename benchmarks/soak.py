"""`chainrule serve` at its limit for half an hour: no error, no lost answer, no other answer, and flat memory.

Each client sends its next request as soon as it has an answer. What the server says of each text alone, before, is what
it has to say of it under load: a score within 0.02 (rows are read in other company, in bfloat16), so that only labels
that are as likely as each other can change places. Prints a line a minute, writes benchmarks/results/soak.json, and
ends with exit code 1 where something was wrong.

    python benchmarks/soak.py --minutes 30 --clients 64
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from load import Connection, requests_of_customers, trained

from chainrule.system.device import physical_cores
from chainrule.testing.servers import start_server

RESULTS = HERE / "results" / "soak.json"
TEXTS, SLACK = 500, 0.02
WARM = 0.2  # the share of the time before memory counts


async def soak(url: str, texts: Sequence[str], clients: int, seconds: float, server: psutil.Process) -> dict[str, Any]:
    """Ask, and look at the server's memory every ten seconds."""
    numbers = count()
    counts: Counter[str] = Counter()
    latencies: list[float] = []
    minutes: list[dict[str, float]] = []
    memory: list[tuple[float, float]] = []
    began = time.perf_counter()
    end = began + seconds
    alone = Connection(url)
    await alone.open()
    expected = [_told(await alone.ask(text)) for text in texts]

    async def client() -> None:
        connection = Connection(url)
        await connection.open()
        while (sent := time.perf_counter()) < end:
            number = next(numbers) % len(texts)
            counts["sent"] += 1
            body = await connection.ask(texts[number])
            counts["answered"] += 1
            latencies.append(time.perf_counter() - sent)
            if body is None:
                counts["errors"] += 1
                continue
            label, score = _told(body)
            counts["other label"] += label != expected[number][0]
            counts["other score"] += abs(score - expected[number][1]) > SLACK
        connection.writer.close()

    async def look() -> None:
        while (now := time.perf_counter()) < end:
            memory.append((now - began, server.memory_info().rss / 2**20))
            if len(memory) % 6 == 0:
                few, latencies[:] = sorted(latencies), []
                rate, p95 = len(few) / 60, 1000 * few[int(0.95 * len(few))] if few else 0.0
                minutes.append({"requests_per_second": round(rate, 1), "p95_ms": round(p95, 1), "mb": memory[-1][1]})
                print(minutes[-1], dict(counts), flush=True)
            await asyncio.sleep(10)

    await asyncio.gather(look(), *(client() for _ in range(clients)))
    kept = [mb for at, mb in memory if at > WARM * seconds]
    half = len(kept) // 2
    found = {name: counts[name] for name in ("sent", "answered", "errors", "other label", "other score")}
    first, second = (round(median(part), 1) for part in (kept[:half], kept[half:]))
    return found | {"mb_first_half": first, "mb_second_half": second, "minutes": minutes}


def _told(body: bytes | None) -> tuple[str, float]:
    if body is None:
        raise SystemExit("the server does not answer a single request")
    (row,) = json.loads(body)["predictions"]
    return row["label"], row["score"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--flags", nargs="*", default=[], help="further words for `chainrule serve`")
    options = parser.parse_args()
    texts = requests_of_customers()[:TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        words = [trained(Path(folder)), *options.flags]
        server = start_server(words, {"OMP_NUM_THREADS": str(options.threads)})
        try:
            process = psutil.Process(server.process.pid)
            found = asyncio.run(soak(server.url, texts, options.clients, 60 * options.minutes, process))
        finally:
            code, told = server.end()
    result = {"clients": options.clients, "threads": options.threads, "exit": code, **found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    wrong = found["errors"] or found["other score"] or found["sent"] != found["answered"] or code
    growth = found["mb_second_half"] / found["mb_first_half"] - 1
    rest = {name: value for name, value in result.items() if name != "minutes"}
    print(f"{rest}\nmemory of the second half over that of the first: {growth:+.2%}\n{told}")
    raise SystemExit(1 if wrong or growth > 0.02 else 0)


if __name__ == "__main__":
    main()
