"""Several models of one task that answer together, called like one model.

Probabilities are averaged, not logits: what comes out are their logarithms, so that softmax gives the mean back. Each
member computes in its own number format. They read the same tokens, so a row is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils import ModelOutput

from chainrule.core.artifact import Artifact
from chainrule.errors import ModelError, Problem, Where
from chainrule.system.files import read_json

SETTINGS, MEMBERS = "ensemble.json", "members"
KINDS = ("class", "classes", "number", "spans")  # of targets whose models give a few logits a row or a word
_LEAST = 1e-12  # of a probability, before its logarithm


class Member(Protocol):
    """A model with how it is called: a Predictor."""

    @property
    def forward(self) -> Any: ...


class Ensemble(torch.nn.Module):
    """Gives `logits` such that the task reads the weighted mean of what its members say.

    Attributes:
        kind: of the task's target.
    """

    def __init__(self, config: Any, members: Sequence[Member], weights: Sequence[float], kind: str) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.forwards = [member.forward for member in members]
        self.models = torch.nn.ModuleList([forward.model for forward in self.forwards])
        self.weights = tuple(weights)

    def forward(self, **inputs: torch.Tensor) -> ModelOutput:
        """The logits of the mean, (b, labels) or (b, t, labels)."""
        said = torch.stack([self._said(forward, inputs) for forward in self.forwards])
        shares = torch.tensor(self.weights, dtype=said.dtype).view(-1, *[1] * (said.ndim - 1))
        return ModelOutput(logits=from_mean((shares * said).sum(0), self.kind))

    def _said(self, forward: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with forward.autocast():
            logits = forward.model(**{name: tensor.to(forward.device) for name, tensor in inputs.items()}).logits
        return probabilities(logits.float().cpu(), self.kind)


def probabilities(logits: torch.Tensor, kind: str) -> torch.Tensor:
    """What a member says, such that a mean of it makes sense."""
    if kind == "number":
        return logits
    return torch.sigmoid(logits) if kind == "classes" else torch.softmax(logits, -1)


def from_mean(mean: torch.Tensor, kind: str) -> torch.Tensor:
    """The logits that say the same as a mean."""
    if kind == "number":
        return mean
    sure = mean.clamp_min(_LEAST)
    return sure.log() - (1 - mean).clamp_min(_LEAST).log() if kind == "classes" else sure.log()


def members_of(artifact: Artifact) -> tuple[list[Artifact], list[float]]:
    """The members of an ensemble on disk, and their weights.

    Raises:
        ModelError: its files do not say so, or other members lie there than it was made of.
    """
    settings = read_json(artifact.path / SETTINGS)
    hashes, weights = (_list(settings.get(name)) for name in ("members", "weights"))
    if not hashes or len(hashes) != len(weights) or not all(isinstance(weight, int | float) for weight in weights):
        raise _damaged(artifact.path / SETTINGS, "members and their weights, one each", "something else")
    found = [Artifact.read(artifact.path / MEMBERS / str(place)) for place in range(len(hashes))]
    for member, known in zip(found, hashes, strict=True):
        if member.manifest.weights_sha256 != known:
            raise _damaged(member.path, f"the member with weights of SHA-256 {known}", member.manifest.weights_sha256)
    return found, [float(weight) for weight in weights]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _damaged(file: Path, expected: str, got: str) -> ModelError:
    problem = Problem(expected, got, "Take a copy that is whole, or make it again.", Where(file=str(file)))
    return ModelError("The ensemble cannot be loaded.", [problem])
