"""How the threads of one matrix product wait for each other. Must be said before torch is loaded."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let waiting threads sleep instead of spinning, unless the user's environment says otherwise.

    With two threads on two cores that another program wants too, spinning made a step 17 times slower; on a quiet
    machine sleeping costs a few per cent (LOG.md, 2026-11-22).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
