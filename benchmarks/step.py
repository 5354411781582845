"""One training step of the demo model, plain and with the CPU kernels in turn, at several lengths.

Forward, backward and fused AdamW of a batch of 32 even rows with dropout 0.1. Prints the medians of each and
the median of the ratios of neighbouring steps. `--waiting` runs itself again with threads that spin and threads that
sleep (OMP_WAIT_POLICY) while another process keeps the cores busy.

    python benchmarks/step.py --lengths 16 56 128 --steps 20
    python benchmarks/step.py --waiting
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from chainrule.core.recipe import Structure
from chainrule.models.accelerate import accelerate
from chainrule.models.load import load_classifier, load_tokenizer

ROWS = 32


def made(fast: bool) -> tuple[Any, torch.optim.Optimizer]:
    """The model in training mode with its optimizer, with or without the kernels."""
    tokenizer = load_tokenizer("minilm")
    model = load_classifier("minilm", tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
    if fast:
        accelerate(model, torch.device("cpu"))
    return model.train(), torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor, bfloat16: bool) -> float:
    """Milliseconds of one step."""
    began = time.perf_counter()
    context = torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    with context:
        loss = functional.cross_entropy(model(input_ids=ids).logits.float(), torch.arange(ROWS) % 2)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return (time.perf_counter() - began) * 1000


def compare(lengths: list[int], steps: int) -> None:
    """Steps of the plain and the accelerated model in turn."""
    plain, fast = made(fast=False), made(fast=True)
    print("| tokens | format | plain ms | kernels ms | plain / kernels |\n|---|---|---|---|---|")
    for length in lengths:
        ids = torch.randint(1000, 20000, (ROWS, length))
        for bfloat16 in (True, False):
            times = [(step(*plain, ids, bfloat16), step(*fast, ids, bfloat16)) for _ in range(steps + 2)][2:]
            before, after = median(a for a, _ in times), median(b for _, b in times)
            ratio = median(a / b for a, b in times)
            print(f"| {length} | {'bfloat16' if bfloat16 else 'float32'} | {before:.0f} | {after:.0f} | {ratio:.2f} |")


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
        for policy in (None, "PASSIVE"):
            environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
            environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
            print(f"{others} other busy processes, OMP_WAIT_POLICY {policy or 'not set'}:", flush=True)
            command = [sys.executable, __file__, "--one", "--lengths", "16", "56", "--steps", str(steps)]
            subprocess.run(command, env=environment, check=True)
        for worker in workers:
            worker.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 56, 128])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--waiting", action="store_true")
    parser.add_argument("--one", action="store_true", help="only the accelerated model in bfloat16")
    options = parser.parse_args()
    if options.waiting:
        waiting(options.steps)
    elif options.one:
        fast = made(fast=True)
        for length in options.lengths:
            ids = torch.randint(1000, 20000, (ROWS, length))
            times = [step(*fast, ids, True) for _ in range(options.steps + 2)][2:]
            print(f"  {length} tokens: median {median(times):.0f} ms", flush=True)
    else:
        compare(options.lengths, options.steps)


if __name__ == "__main__":
    main()
