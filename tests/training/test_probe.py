"""A probe leaves no trace in the model that it looks at."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chainrule.data.batch import Batch
from chainrule.tasks.objectives import backward
from chainrule.training.probe import faster_precision, seconds_per_token

pytestmark = pytest.mark.unit


class Normed(nn.Module):
    """Batch normalisation, which remembers the batches it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.norm(values)))


class Summed:
    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return backward(model(**batch.inputs).logits.square().sum()), len(batch)


def batch_of(rows: np.ndarray) -> Batch:
    values = torch.from_numpy(np.arange(4.0 * len(rows), dtype=np.float32).reshape(-1, 4))
    return Batch({"values": values}, None, rows, len(rows))


def test_what_a_model_remembers_of_batches_is_put_back() -> None:
    model = Normed().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    faster_precision(model, Summed(), batch_of(np.arange(8)))
    seconds_per_token(model, Summed(), [np.arange(8)] * 2, lambda rows: [rows], batch_of, nullcontext)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model(batch_of(np.arange(8)).inputs["values"])
    assert model.norm.num_batches_tracked is not None
    assert int(model.norm.num_batches_tracked) == 1  # it still remembers what it is trained on
