"""Small weights set to zero: magnitude pruning (Han et al., 2015), free in its places or in the pattern N:M.

The zeros are stored and multiplied like other numbers: no engine that Chainrule runs skips them on a CPU, so the result
is as large and as fast as before. It is for engines that do skip them, and to compare with.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import nn

from chainrule.compressors.base import Given, refused
from chainrule.core.recipe import Section
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.graph import merged
from chainrule.inference.predict import Predictor
from chainrule.models.folder import WEIGHTS
from chainrule.models.inspect import layer_stack
from chainrule.models.save import save_model


class Options(Section):
    """Which weights of the layers' matrix products become zero: the smallest of each matrix.

    Attributes:
        share: of them, where there is no pattern.
        pattern: "2:4" leaves the two largest of every four that stand beside each other; null for none.
    """

    share: float = Field(default=0.5, gt=0, lt=1)
    pattern: str | None = None

    @field_validator("pattern")
    @classmethod
    def _numbers(cls, pattern: str | None) -> str | None:
        if pattern is not None and not (re.fullmatch(r"[1-9]\d?:[1-9]\d?", pattern) and _fewer(pattern)):
            raise ValueError("a pattern such as 2:4, the first number smaller")
        return pattern


class Sparse:
    """Takes a model of transformers with a list of layers."""

    faster, exact = False, False

    def __init__(self, options: Options) -> None:
        self.options = options

    def refuse(self, predictor: Predictor) -> None:
        runtime = predictor.artifact.manifest.runtime
        if runtime != "torch":
            raise refused(predictor, f"one that was made for {runtime}", "Take the artifact that it was made from.")
        if not _matrices(predictor.forward.model):
            raise refused(predictor, "one without layers of matrix products", "Use it as it is.")

    def write(self, predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
        given.display.say(
            "Zeros are stored and multiplied like other numbers: this is neither smaller nor faster here."
        )
        model, pattern = merged(predictor), self.options.pattern
        zeros = total = 0
        with torch.no_grad():
            for matrix in _matrices(model):
                keep = pattern_mask(matrix, pattern) if pattern else share_mask(matrix, self.options.share)
                matrix.mul_(keep)
                zeros, total = zeros + int((~keep).sum()), total + keep.numel()
        given.display.say(f"{zeros:,} of {total:,} weights ({100 * zeros / max(1, total):.1f} %) are zero now.")
        manifest, task = predictor.artifact.manifest, predictor.task
        limit = None if task.head == "language-model" or task.sees else manifest.max_length
        loads_in = save_model(folder, model, predictor.tokenizer, max_length=limit, base=manifest.base_model)
        return Written("torch", loads_in, WEIGHTS, bound=bound)


def share_mask(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """Where weights stay: the smallest `share` of them go, rounded down."""
    keep = torch.ones(matrix.numel(), dtype=torch.bool)
    keep[torch.sort(matrix.detach().abs().flatten(), stable=True).indices[: int(share * matrix.numel())]] = False
    return keep.view_as(matrix)


def pattern_mask(matrix: torch.Tensor, pattern: str) -> torch.Tensor:
    """Where the N largest of every M inputs beside each other stay; what is left over at the end of a row stays."""
    kept, of = map(int, pattern.split(":"))
    whole = matrix.shape[1] // of * of
    keep = torch.ones(matrix.shape, dtype=torch.bool)
    groups = matrix.detach()[:, :whole].abs().reshape(len(matrix), -1, of)
    order = torch.sort(groups, dim=-1, stable=True).indices
    keep[:, :whole] = torch.ones_like(groups, dtype=torch.bool).scatter(-1, order[..., : of - kept], False).flatten(1)
    return keep


def _matrices(model: Any) -> list[torch.Tensor]:
    base = getattr(model, "base_model", None)
    if base is None or not hasattr(model, "config"):
        return []
    if not any(isinstance(module, nn.ModuleList) for module in base.modules()):
        return []
    return [
        module.weight for layer in layer_stack(model) for module in layer.modules() if isinstance(module, nn.Linear)
    ]


def _fewer(pattern: str) -> bool:
    kept, of = map(int, pattern.split(":"))
    return kept < of
