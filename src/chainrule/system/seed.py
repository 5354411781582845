"""Random generators: seeded together, and put back when a probe has used them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_processor(seed: int) -> None:
    """The same without the other devices, for which torch keeps a call and its stack each time until they are used."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch for one optimizer step, so that its random numbers are a function of these three alone.

    A run that goes on from a checkpoint then draws what it would have drawn without the interruption. Processes that
    share a batch draw apart.
    """
    keys = [seed, step, rank] if rank else [seed, step]
    torch.manual_seed(int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]))


def choose_determinism(device: torch.device, wanted: bool | None) -> bool:
    """Let every run on a device give the same bits, or not; None does so on a CPU, where it costs nothing.

    Elsewhere it keeps torch to algorithms that add in a fixed order, which are slower; an operation that has none
    raises RuntimeError.
    """
    chosen = device.type == "cpu" if wanted is None else wanted
    if device.type != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
        torch.use_deterministic_algorithms(chosen)
        torch.backends.cudnn.benchmark = False
    return chosen


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put every generator back as it was, so that a measurement leaves no trace in the run."""
    python, numpy_state, put_back = random.getstate(), np.random.get_state(), torch_generators()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        put_back()


def torch_generators() -> Callable[[], None]:
    """What puts torch's generators, of all devices, back to where they are now: the same masks are drawn again."""
    processor = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def put_back() -> None:
        torch.set_rng_state(processor)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return put_back
