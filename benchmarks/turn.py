"""A trainer's side of turns.py. Nothing of Chainrule is used here, so that peers can."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


class Turns:
    """A worker's side: call `step` before every step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.made, self.began = steps, 0, 0.0

    def step(self) -> None:
        """Tell the time of a turn that is over, and wait for the next."""
        if self.steps and self.made % self.steps == 0:
            if self.made:
                tell({"seconds": time.perf_counter() - self.began})
            if sys.stdin.readline().strip() != "go":
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                tell({"peak_memory_mb": memory})
                os._exit(0)
            self.began = time.perf_counter()
        self.made += 1


def tell(message: dict[str, Any]) -> None:
    """One line to whoever gives the turns."""
    print("turn " + json.dumps(message), flush=True)
