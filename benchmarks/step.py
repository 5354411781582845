"""One training step of the demo model, by the peers' settings and by ours in turn, at several lengths.

Forward, backward, clipping and AdamW of a batch of 32 even rows with dropout 0.1. Prints the median of each and the
ratio to the best of the peers' settings; `efficiency` is the matrix products' arithmetic over (the time times the rate
of plain `F.linear` at the model's own shapes), measured in the same run. `--waiting` runs itself again with threads
that spin, sleep, or spin for a moment, on a quiet machine and while other processes keep the cores busy. `--kernels`
tells where the time of our step goes.

    python benchmarks/step.py --lengths 16 56 128 --steps 20
    python benchmarks/step.py --waiting
    python benchmarks/step.py --kernels --lengths 128
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from chainrule.core.recipe import Optimizer, Structure
from chainrule.kernels import native as built
from chainrule.models.accelerate import accelerate, keep_half_gradients
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.system.memory import keep_freed
from chainrule.training.loop import mean_and_clip
from chainrule.training.optimizers import make_optimizer

ROWS = 32
OURS = ("ours, plain torch", "ours, compiled")
# name -> (attention, number format)
PEERS = {
    "float32 sdpa": ("sdpa", "float32"),
    "autocast sdpa": ("sdpa", "autocast"),
    "autocast eager": ("eager", "autocast"),
    "bf16 weights sdpa": ("sdpa", "weights"),
    "bf16 weights eager": ("eager", "weights"),
}
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
Step = Callable[[torch.Tensor], float]


def fresh() -> Any:
    """The model in training mode."""
    tokenizer = load_tokenizer("minilm")
    structure = Structure()
    return load_classifier("minilm", tokenizer, ["a", "b"], "single_label_classification", structure, seed=0).train()


def loss_of(model: Any, ids: torch.Tensor, autocast: bool) -> torch.Tensor:
    """The loss summed over the rows."""
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        logits = model(input_ids=ids).logits.float()
    return functional.cross_entropy(logits, torch.arange(ROWS) % 2, reduction="sum")


def peer(attention: str, precision: str) -> Step:
    """A step of plain transformers and torch with fused AdamW."""
    model = fresh()
    model.set_attn_implementation(attention)
    if precision == "weights":
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(ids: torch.Tensor) -> float:
        began = time.perf_counter()
        (loss_of(model, ids, precision == "autocast") / ROWS).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return (time.perf_counter() - began) * 1000

    return step


def ours(compiled: bool, autocast: bool = True) -> Step:
    """A step as the loop makes it."""
    with native(compiled):
        model = fresh()
        accelerate(model, torch.device("cpu"))
        if compiled and autocast:
            keep_half_gradients(model)
        parameters = list(model.parameters())
        group = {"params": parameters, "lr": 1e-5, "initial_lr": 1e-5, "weight_decay": 0.01}
        optimizer = make_optimizer(Optimizer(), [group])

    def step(ids: torch.Tensor) -> float:
        with native(compiled):
            began = time.perf_counter()
            loss_of(model, ids, autocast).backward()  # type: ignore[no-untyped-call]
            _, optimizer.gradient_scale = mean_and_clip(parameters, ROWS, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return (time.perf_counter() - began) * 1000

    return step


@contextlib.contextmanager
def native(on: bool) -> Any:
    """Compiled kernels on or off inside."""
    before = os.environ.get("CHAINRULE_NATIVE")
    os.environ["CHAINRULE_NATIVE"] = "1" if on else "0"
    try:
        yield
    finally:
        os.environ.pop("CHAINRULE_NATIVE")
        if before is not None:
            os.environ["CHAINRULE_NATIVE"] = before


def product_rate(rows: int) -> float:
    """FLOP per millisecond of bfloat16 `F.linear` at the model's shapes, the median over shapes and repeats."""
    rates = []
    for inputs, outputs in ((384, 384), (384, 1152), (384, 1536), (1536, 384)):
        values, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
        for _ in range(5):
            began = time.perf_counter()
            functional.linear(values, weight)
            rates.append(2 * rows * inputs * outputs / ((time.perf_counter() - began) * 1000))
    return median(rates)


def products(length: int) -> float:
    """FLOP of all matrix products of one step: forward once, backward twice; attention included."""
    layer = ROWS * length * (4 * 384 * 384 + 2 * 384 * 1536) + 2 * ROWS * length * length * 384
    return 3 * 2.0 * 6 * layer


def compare(lengths: list[int], steps: int) -> None:
    """All in turn."""
    settings = {name: peer(*setting) for name, setting in PEERS.items()}
    settings |= {OURS[0]: ours(compiled=False), OURS[1]: ours(compiled=True)}
    names = list(settings)
    print("| tokens | " + " | ".join(f"{name}, ms" for name in names) + " | best peer / ours | efficiency |")
    print("|" + "---|" * (len(names) + 3))
    for length in lengths:
        ids = torch.randint(1000, 20000, (ROWS, length))
        times: dict[str, list[float]] = {name: [] for name in names}
        rates = []
        for number in range(steps + 2):
            for name in names:
                taken = settings[name](ids)
                if number >= 2:
                    times[name].append(taken)
            rates.append(product_rate(ROWS * length))
        middle = {name: median(taken) for name, taken in times.items()}
        best = min(PEERS, key=lambda name: middle[name])
        ratio = median(a / b for a, b in zip(times[best], times[OURS[1]], strict=True))
        share = products(length) / (middle[OURS[1]] * median(rates))
        cells = " | ".join(f"{middle[name]:.0f}" for name in names)
        print(f"| {length} | {cells} | {ratio:.2f} ({best}) | {share:.2f} |", flush=True)


def busy(seconds: float) -> None:
    """Keeps one core busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


def waiting(steps: int) -> None:
    """The same steps with spinning and with sleeping threads, on a quiet and on a busy machine."""
    for others in (0, 2):
        workers = [multiprocessing.Process(target=busy, args=(900,), daemon=True) for _ in range(others)]
        for worker in workers:
            worker.start()
        for policy in (None, "OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=3000", "GOMP_SPINCOUNT=20000"):
            environment = {key: value for key, value in os.environ.items() if key not in _WAITING}
            environment |= dict([policy.split("=")]) if policy else {}
            print(f"{others} other busy processes, {policy or 'the default'}:", flush=True)
            command = [sys.executable, __file__, "--one", "--lengths", "16", "56", "--steps", str(steps)]
            subprocess.run(command, env=environment, check=True)
        for worker in workers:
            worker.terminate()


def kernels(length: int, steps: int) -> None:
    """Where a step's time goes, by kernel: calls, and milliseconds of a step as the median of some."""
    step, ids, call = ours(compiled=True), torch.randint(1000, 20000, (ROWS, length)), built.call
    taken: dict[str, list[float]] = {}

    def timed(name: str, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(name, *arguments)
        finally:
            taken.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    for _ in range(5):
        step(ids)
    built.call = timed
    wholes, sums = [], []
    for _ in range(steps):
        taken.clear()
        wholes.append(step(ids))
        sums.append({name: sum(times) for name, times in taken.items()})
    built.call = call
    calls = {name: len(times) for name, times in taken.items()}
    middle = {name: median(each[name] for each in sums) for name in calls}
    print("| kernel | calls | ms | share |\n|---|---|---|---|")
    for name in sorted(middle, key=lambda name: -middle[name]):
        print(f"| {name} | {calls[name]} | {middle[name]:.1f} | {middle[name] / median(wholes):.0%} |")
    rest = median(whole - sum(each.values()) for whole, each in zip(wholes, sums, strict=True))
    print(f"| all else (Python, torch) | | {rest:.1f} | {rest / median(wholes):.0%} |")
    rate = product_rate(ROWS * length)
    print(f"| step of {length} tokens | {sum(calls.values())} | {median(wholes):.1f} | |")
    print(f"| its products alone, at the rate of `F.linear` | | {products(length) / rate:.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 56, 128])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--waiting", action="store_true")
    parser.add_argument("--kernels", action="store_true", help="where the time of each length's step goes")
    parser.add_argument("--one", action="store_true", help="only the accelerated model in bfloat16")
    options = parser.parse_args()
    keep_freed()
    if options.waiting:
        waiting(options.steps)
    elif options.kernels:
        for length in options.lengths:
            kernels(length, options.steps)
    elif options.one:
        step = ours(compiled=True)
        for length in options.lengths:
            ids = torch.randint(1000, 20000, (ROWS, length))
            times = [step(ids) for _ in range(options.steps + 2)][2:]
            print(f"  {length} tokens: median {median(times):.0f} ms", flush=True)
    else:
        compare(options.lengths, options.steps)


if __name__ == "__main__":
    main()
