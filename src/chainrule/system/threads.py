"""How the threads of one matrix product wait for each other. Must be said before torch is loaded."""

from __future__ import annotations

import os

# Rounds of GNU OpenMP's waiting loop before a thread sleeps: as long as Python takes between two kernels.
SPINS = "20000"


def wait_briefly() -> None:
    """Let waiting threads spin for a moment and then sleep, unless the user's environment says otherwise.

    Threads that sleep at once made a step on short texts 1.4 times slower on a quiet machine; threads that only spin
    made it 17 times slower on a busy one (LOG.md, 2026-11-22; how long, 2026-11-23).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
