"""From the model that was trained to the one that is saved: on the way nothing that it says may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, Problem
from chainrule.inference.predict import said_of
from chainrule.models.accelerate import restore
from chainrule.models.adapters import has_adapters, plain_model
from chainrule.models.heads import settle
from chainrule.training.events import Sink
from chainrule.training.job import Job

ROWS = 8
TOLERANCE = 1e-3  # of the mean loss; float32 leaves about a hundredth of it


def finished(job: Job, record: Sink) -> Any:
    """The model to save, without our kernels. Where adapters were merged, rows are read with both and compared.

    Raises:
        ChainruleError: the merged model gives other losses than the model with adapters.
    """
    restore(plain_model(job.model))
    before = _losses(job, job.model) if has_adapters(job.model) else None
    model = job.strategy.finish(job.model)
    settle(model)
    if before is None or has_adapters(model):
        return model
    difference = float(np.abs(_losses(job, model) - before).max())
    record({"event": "merged", "rows": len(before), "largest_difference_of_losses": difference})
    if not difference <= TOLERANCE * max(float(before.mean()), TOLERANCE):
        problem = Problem(
            expected=f"the losses of {len(before)} rows as they were before merging",
            got=f"differences of up to {difference:.3g} where the mean is {before.mean():.3g}",
            todo="Train with --set strategy.options.merge=false, and report this.",
        )
        raise ChainruleError("The merged model is not the one that was trained.", [problem])
    return model


def _losses(job: Job, model: Any) -> np.ndarray:
    """The losses of the first rows of validation, in float32."""
    rows = job.validation.take(np.arange(min(ROWS, len(job.validation))))
    predictions = said_of(replace(job.forward, model=model, precision="float32"), rows, job.task)
    if predictions.losses is None:
        raise ValueError("validation rows need targets")
    return predictions.losses
