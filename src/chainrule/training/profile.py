"""Where the time of a training step goes, and how far it is from its matrix products alone."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from chainrule.kernels.linear import MOST_TERMS, multiply_across, on_tiles
from chainrule.training.loop import Step

SKIPPED, PROFILED = 3, 8  # steps before, and steps looked at
REPEATS = 5
PRODUCTS = "matrix products"
# The kind of work behind an operation's name: the first entry whose word is in it.
KINDS = (
    ("Optimizer.step", "optimizer"),
    ("adamw", "optimizer"),
    ("chainrule::adam", "optimizer"),
    ("chainrule::squares", "optimizer"),
    ("tiled_", "attention"),
    ("heads_", "attention"),
    ("Attention", "attention"),
    ("softmax", "attention"),
    ("scaled_dot_product", "attention"),
    ("rotate", "attention"),
    ("Norm", "norms and residual sums"),
    ("norm", "norms and residual sums"),
    ("Gelu", "activations"),
    ("gelu", "activations"),
    ("gated", "activations"),
    ("Silu", "activations"),
    ("silu", "activations"),
    ("Dropout", "dropout"),
    ("dropout", "dropout"),
    ("bernoulli", "dropout"),
    ("mbedding", "embeddings"),
    ("copy_", "casts and copies"),
    ("cat", "casts and copies"),
)
Shape = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Profile:
    """What some steps spent their time on, the profiler's own time included.

    Attributes:
        seconds: mean of a step by kind of work, the longest first.
        step_seconds: mean of a step.
        floor_seconds: the step's matrix products, each repeated alone on this machine now.
    """

    steps: int
    seconds: dict[str, float]
    step_seconds: float
    floor_seconds: float

    def lines(self) -> list[str]:
        """For a person."""
        width = max(map(len, self.seconds))
        table = [
            f"  {name:<{width}} {1000 * value:8.1f} ms  {value / self.step_seconds:4.0%}"
            for name, value in self.seconds.items()
        ]
        ratio = self.step_seconds / self.floor_seconds
        return [
            f"Where a step's time goes (mean of {self.steps} steps, {1000 * self.step_seconds:.0f} ms each):",
            *table,
            f"Its matrix products alone take {1000 * self.floor_seconds:.0f} ms: a step takes {ratio:.1f} times that.",
        ]

    def as_event(self) -> dict[str, Any]:
        """For events.jsonl."""
        return {
            "event": "profile",
            "steps": self.steps,
            "step_seconds": round(self.step_seconds, 6),
            "floor_seconds": round(self.floor_seconds, 6),
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
        }


def profiled(steps: Iterator[Step], precision: str, report: Callable[[Profile], None]) -> Iterator[Step]:
    """The same steps; some early ones are watched, and what was seen is reported once.

    Args:
        precision: of the matrix products, which are repeated in it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler writes lines of its own
    spent: Counter[str] = Counter()
    products: Counter[Shape] = Counter()
    times: list[float] = []
    number = 0
    while True:
        number += 1
        watched = SKIPPED < number <= SKIPPED + PROFILED
        try:
            step = _watched(steps, spent, products, times) if watched else next(steps)
        except StopIteration:
            break
        if number == SKIPPED + PROFILED:
            report(_summary(spent, products, times, precision))
        yield step
    if 0 < len(times) < PROFILED:
        report(_summary(spent, products, times, precision))


def _watched(steps: Iterator[Step], spent: Counter[str], products: Counter[Shape], times: list[float]) -> Step:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watch:
        began = time.perf_counter()
        step = next(steps)
        times.append(time.perf_counter() - began)
    for entry in watch.key_averages(group_by_input_shape=True):
        shape = _product_shape(entry.key, entry.input_shapes)
        spent[PRODUCTS if shape else _kind(entry.key)] += entry.self_cpu_time_total
        if shape:
            products[shape] += entry.count
    return step


def _summary(spent: Counter[str], products: Counter[Shape], times: list[float], precision: str) -> Profile:
    count = len(times)
    seconds = {name: value / 1e6 / count for name, value in spent.items() if name != _ELSE}
    mean = sum(times) / count
    seconds[_ELSE] = max(0.0, mean - sum(seconds.values()))
    ordered = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    floor = sum(_alone(shape, precision) * number for shape, number in products.items()) / count
    return Profile(count, ordered, mean, floor)


_ELSE = "everything else"


def _kind(name: str) -> str:
    return next((kind for word, kind in KINDS if word in name), _ELSE)


def _product_shape(name: str, shapes: list[list[int]]) -> Shape | None:
    """The shapes of both factors of a matrix product; None for any other operation."""
    if name.startswith("chainrule::product "):
        rows, inputs, outputs, few, _ = map(int, name.split()[1:])
        first, second = [rows, inputs + few], [inputs + few, outputs]
    elif name.startswith("chainrule::weight_gradient "):
        rows, outputs, inputs = map(int, name.split()[1:])
        first, second = [outputs, rows], [rows, inputs]
    elif name in ("aten::mm", "aten::bmm"):
        first, second = shapes[0], shapes[1]
    elif name in ("aten::addmm", "aten::addmm_", "aten::baddbmm"):
        first, second = shapes[1], shapes[2]
    else:
        return None
    return tuple(first), tuple(second)


def _alone(shape: Shape, precision: str) -> float:
    """Seconds of one product of these shapes, by torch or on tiles, whichever is the faster."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    first, second = (torch.ones(size, dtype=kind) for size in shape)
    ways: list[Callable[[], torch.Tensor]] = [lambda: torch.matmul(first, second)]
    if first.ndim == 2 and on_tiles(first, second) and len(second) <= MOST_TERMS:
        ways.append(lambda: multiply_across(first, second))
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(REPEATS):
        for way, taken in zip(ways, times, strict=True):
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    return min(map(median, times))
