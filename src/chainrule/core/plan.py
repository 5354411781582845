"""What `plan` found: what was looked at, what is recommended, what it will take, and whether that fits."""

from __future__ import annotations

from typing import Any

from chainrule.core.report import Report


class Reason(Report):
    """Why a key of the recipe has its value.

    Attributes:
        evidence: an entry of LOG.md, a paper, or what was counted.
        page: of the documents that explains it.
    """

    key: str
    value: Any
    text: str
    evidence: str
    page: str

    @property
    def line(self) -> str:
        """All of it on one line."""
        return f"{self.text} ({self.evidence}; see {self.page})"


class Option(Report):
    """A model with a strategy that was looked at.

    Attributes:
        seconds, peak_memory_mb: expected; None where it cannot be trained.
        measured: by steps that were made; else counted.
        note: why it was not taken.
    """

    model: str
    strategy: str
    epochs: float | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    measured: bool = False
    note: str = ""


class PlanReport(Report):
    """What `plan` found.

    Attributes:
        predicted: seconds, peak_memory_mb, steps, measured_steps; of the nearest where nothing fits.
        recipe: complete; None where nothing fits.
        limits: seconds and peak_memory_mb that there are; None for no limit.
        nearest: what comes nearest to the limits, where nothing fits.
        took: seconds.
    """

    goal: str
    data: dict[str, Any]
    machine: dict[str, Any]
    models: tuple[dict[str, Any], ...]
    options: tuple[Option, ...]
    predicted: dict[str, float]
    recipe: dict[str, Any] | None
    reasons: tuple[Reason, ...]
    limits: dict[str, float | None]
    go: bool
    verdict: str
    nearest: Option | None = None
    took: float
