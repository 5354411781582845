"""Which way of self-attention is the fastest here where there are no tiles: what `kernels.fastest` finds, as a table.

A cache folder of its own, so that nothing known before counts; batches of at most 4,096 tokens, a quarter of each row
masked, no dropout. A cell is the fastest way, and the time of the products over its own.

    python benchmarks/attention_ways.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from itertools import product
from typing import Any

import torch

from chainrule.kernels import native
from chainrule.kernels.attention import self_attention
from chainrule.system.device import use_threads

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
SIZES = {32: 12, 64: 6, 128: 8}  # of a head -> heads
USES = {True: "training", False: "prediction"}


def found(dtype: torch.dtype, size: int, length: int, training: bool) -> dict[str, Any]:
    """What was found for one case: the way, and the milliseconds of each."""
    heads, rows = SIZES[size], max(1, min(64, 4096 // length))
    known = native.library_path().with_suffix(f".torch-{torch.__version__}.json")
    before = set(json.loads(known.read_text())) if known.is_file() else set()
    seen = torch.ones(rows, 1, 1, length, dtype=torch.bool)
    seen[..., length - length // 4 :] = False
    projected = torch.randn(rows, length, 3 * heads * size).to(dtype)
    with torch.set_grad_enabled(training):
        self_attention(projected, heads, seen, size**-0.5, 0.0)
    after = json.loads(known.read_text())
    for case in set(after) - before:
        result: dict[str, Any] = after[case]
        return result
    return {"way": "products", "milliseconds": {"products": 1.0}}  # there is no other, and nothing to time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    use_threads(parser.parse_args().threads)
    if not native.available():
        raise SystemExit("there are no compiled kernels here, and so no ways to choose from")
    native.tiles = lambda: False
    print(f"| format, use, size of heads | {' | '.join(map(str, LENGTHS))} tokens |\n|{'---|' * (len(LENGTHS) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHAINRULE_CACHE"] = folder
        for dtype, size, training in product((torch.float32, torch.bfloat16), SIZES, USES):
            cells = [f"{str(dtype).removeprefix('torch.')}, {USES[training]}, {size}"]
            for length in LENGTHS:
                case = found(dtype, size, length, training)
                ratio = case["milliseconds"]["products"] / case["milliseconds"][case["way"]]
                cells.append(case["way"] if case["way"] == "products" else f"{case['way']} {ratio:.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
