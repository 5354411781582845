"""Which of the processes that were started side by side this one is; known before torch is loaded."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number, from 0, as torchrun tells it; 0 for a process of its own."""
    return _number("RANK") if size() > 1 else 0


def size() -> int:
    """How many processes torchrun has started for this command; 1 for a process of its own."""
    return max(1, _number("WORLD_SIZE")) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0
