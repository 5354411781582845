"""What a training was expected to cost, beside the recipe that it was expected of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    """What `plan` expects of a recipe. It is written by a planner and changes nothing in a training.

    Attributes:
        seconds: as the summary of a run says them: all steps, validation excluded.
        peak_memory_mb: of the process, as the summary says it.
        steps: that are to be made.
        measured_steps: that were made to find out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seconds: float = Field(ge=0)
    peak_memory_mb: float = Field(ge=0)
    steps: int = Field(ge=1)
    measured_steps: int = Field(ge=0)
