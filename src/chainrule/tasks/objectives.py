"""The base objectives: forward, loss per row, backward of the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from chainrule.core.recipe import Section, Spec, parse_options, unknown_name

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LogitsObjective:
    """The sum over rows of a loss between a model's logits (b, labels) and the targets."""

    row_loss: RowLoss

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        logits = model(**batch.inputs).logits.float()
        total = self.row_loss(logits, batch.targets).sum()
        with torch.autocast(total.device.type, enabled=False):  # backward keeps the types that forward chose
            total.backward()  # type: ignore[no-untyped-call]
        return total.detach(), len(batch)


class CrossEntropyOptions(Section):
    """Options of `cross-entropy`. "balanced" weighs each class by 1 / its frequency, with mean weight 1 over rows."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"


class NoOptions(Section):
    """For losses without options."""


def cross_entropy(spec: Spec, targets: np.ndarray, labels: int) -> LogitsObjective:
    """Softmax cross-entropy over classes."""
    known_loss(spec, "cross-entropy")
    options = parse_options(CrossEntropyOptions, spec, "loss")
    weights = None
    if options.class_weights == "balanced":
        counts = np.bincount(targets, minlength=labels)
        present = np.maximum(counts, 1)
        weights = torch.from_numpy((len(targets) / (np.count_nonzero(counts) * present)).astype(np.float32))

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        device_weights = None if weights is None else weights.to(logits.device)
        return functional.cross_entropy(
            logits, wanted, weight=device_weights, label_smoothing=options.label_smoothing, reduction="none"
        )

    return LogitsObjective(row_loss)


def binary_cross_entropy(loss: Spec, targets: np.ndarray) -> LogitsObjective:
    """Sigmoid cross-entropy, the mean over labels of each row."""
    known_loss(loss, "binary-cross-entropy")
    parse_options(NoOptions, loss, "loss")

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)

    return LogitsObjective(row_loss)


def mean_squared_error(loss: Spec, targets: np.ndarray) -> LogitsObjective:
    """Squared error in units of the training targets' variance, so that the loss starts near 1 for any unit."""
    known_loss(loss, "mean-squared-error")
    parse_options(NoOptions, loss, "loss")
    variance = max(float(np.var(targets)), 1e-12)

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (logits.squeeze(-1) - wanted).square() / variance

    return LogitsObjective(row_loss)


def known_loss(spec: Spec, name: str) -> None:
    """Refuse a loss that the task does not have; "default" means `name`.

    Raises:
        RecipeError: another loss.
    """
    if spec.name not in ("default", name):
        raise unknown_name("loss", spec.name, (name,))
