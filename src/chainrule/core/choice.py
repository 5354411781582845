"""Why a recipe has the strategy it has: what was tried, what came of it, and what was seen of the model's layers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    """Frozen, complete, no unknown keys; what has no value is null, never NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LayerEvidence(_Record):
    """What one layer shows before anything is trained.

    Attributes:
        probe: what a linear model on the layer's mean state reaches on rows that it was not fitted on; null where the
            task has no single target for a row.
        noise_scale: rows whose mean gradient is as much signal as noise (McCandlish et al., 2018, section 2.2); null
            where no signal was found.
    """

    layer: str
    probe: float | None = None
    noise_scale: float | None = None


class Trial(_Record):
    """One short training of a candidate.

    Attributes:
        round: 1-based; who is left after a round is tried again, longer.
        score: of the rows that were held out, by `Choice.metric`; null where training failed.
        standard_error: of the difference to the best score of its round.
        seconds: of all of it, loading the model included.
        note: why there is no score, or what became of it.
    """

    strategy: str
    options: dict[str, Any] = Field(default_factory=dict)
    learning_rate: float
    round: int
    steps: int
    rows: int
    score: float | None = None
    standard_error: float | None = None
    seconds: float
    trained_parameters: int = 0
    note: str = ""


class Choice(_Record):
    """What `auto` found out. It is written by a training and changes nothing in another one.

    Attributes:
        metric: that trials are ranked by.
        probe_metric: what `LayerEvidence.probe` is.
        seconds: that choosing took.
        allowed_seconds: that it was meant to take at most.
    """

    by: str
    reasons: tuple[str, ...]
    metric: str
    probe_metric: str | None = None
    layers: tuple[LayerEvidence, ...] = ()
    trials: tuple[Trial, ...] = ()
    seconds: float
    allowed_seconds: float
