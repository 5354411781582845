"""What this machine can do at most, measured in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from chainrule.core.report import Report
from chainrule.system.device import choose_device, environment, has_bfloat16, synchronize
from chainrule.system.memory import free_memory
from chainrule.system.seed import kept_generators

SIDE = 1024  # of the matrices
COPIED = 1 << 24  # numbers
SECONDS = 0.25  # for each measurement


class Machine(Report):
    """The machine, as it is now.

    Attributes:
        cores, threads: there are, and torch uses.
        gigaflops: number format -> of a product of two large matrices.
        gigabytes: a second, read and written by a copy.
        memory_mb, free_mb: of the machine, and what a process may still take; of a GPU its own.
    """

    cpu: str
    features: tuple[str, ...]
    cores: int
    threads: int
    device: str
    gpu: str | None
    gigaflops: dict[str, float]
    gigabytes: float
    memory_mb: int
    free_mb: int


def look_at_machine(name: str, threads: int) -> Machine:
    """Facts and peaks.

    Args:
        name: of the device, as in a recipe.
    """
    device = choose_device(name)
    known = environment(device, threads)
    formats = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bfloat16(device) else {})
    with kept_generators():
        speeds = {label: round(_products(device, kind), 1) for label, kind in formats.items()}
        copied = round(_copies(device), 1)
    free = free_memory()
    total = int(known["memory_gb"] * 1024)
    if device.type == "cuda":
        left, whole = torch.cuda.mem_get_info(device)
        free, total = int(left), int(whole) >> 20
    return Machine(
        cpu=known["cpu"],
        features=tuple(known["cpu_features"]),
        cores=known["cores"],
        threads=threads,
        device=device.type,
        gpu=known["gpu"],
        gigaflops=speeds | ({} if "bfloat16" in speeds else {"bfloat16": speeds["float32"]}),
        gigabytes=copied,
        memory_mb=total,
        free_mb=free >> 20,
    )


def _products(device: torch.device, kind: torch.dtype) -> float:
    a, b = (torch.randn(SIDE, SIDE, device=device).to(kind) for _ in range(2))
    return 2e-9 * SIDE**3 / _shortest(lambda: a @ b, device)


def _copies(device: torch.device) -> float:
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    return 8e-9 * COPIED / _shortest(lambda: target.copy_(source), device)


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some repeats: other work on the machine only ever adds time."""
    work()
    times, began = list[float](), time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < SECONDS:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
