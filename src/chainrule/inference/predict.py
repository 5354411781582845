"""Predictions of a model over encoded rows: sorted by length, one batch at a time, no logits kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.core.artifact import Artifact
from chainrule.core.task import Decode, Predictions, Task
from chainrule.data.batch import by_length, collate
from chainrule.data.encode import Encoded, encode
from chainrule.models.load import load_saved_classifier, load_tokenizer
from chainrule.system.device import choose_device, has_bfloat16
from chainrule.system.progress import Bar
from chainrule.tasks import find_task

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Forward:
    """How rows become logits: the model with its padding and number format."""

    model: Any
    pad_id: int
    pad_left: bool
    device: torch.device
    precision: str

    def autocast(self) -> Any:
        """bfloat16 matrix products inside, when `precision` says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model with all that is needed to use it."""

    artifact: Artifact
    task: Task
    tokenizer: Any
    forward: Forward

    def encode(self, inputs: Mapping[str, Sequence[str]], targets: np.ndarray | None = None) -> Encoded:
        """Tokenise as training did, in the order of fields that training used."""
        manifest = self.artifact.manifest
        ordered = {name: inputs[name] for name in manifest.inputs}
        return encode(self.tokenizer, ordered, targets, manifest.max_length)

    def predict(self, encoded: Encoded, bar: Bar | None = None) -> Predictions:
        """Predictions for every row, in the order of the rows."""
        return predict_encoded(self.forward, encoded, self.task.decode, bar)


def load_predictor(artifact: Artifact, *, device: str = "auto") -> Predictor:
    """Load an artifact for prediction, in the number format it was trained in where this machine has it."""
    tokenizer = load_tokenizer(str(artifact.path))
    place = choose_device(device)
    model = load_saved_classifier(artifact.path).to(place).eval()
    wanted = artifact.manifest.recipe.get("training", {}).get("precision", "float32")
    precision = "bfloat16" if wanted == "bfloat16" and has_bfloat16(place) else "float32"
    return Predictor(
        artifact, find_task(artifact.manifest.task), tokenizer, forward_of(model, tokenizer, place, precision)
    )


def forward_of(model: Any, tokenizer: Any, device: torch.device, precision: str) -> Forward:
    """The Forward of a model and the tokenizer it was loaded with."""
    return Forward(model, int(tokenizer.pad_token_id or 0), tokenizer.padding_side == "left", device, precision)


def predict_encoded(forward: Forward, encoded: Encoded, decode: Decode, bar: Bar | None = None) -> Predictions:
    """Predictions for every row, in the order of the rows.

    Memory beside the model: one batch of logits, and per row what `Predictions` holds.
    """
    parts, places = [], []
    with _evaluating(forward.model), torch.inference_mode(), forward.autocast():
        for rows in by_length(encoded.lengths, BATCH_TOKENS):
            batch = collate(encoded, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)
            logits = forward.model(**batch.inputs).logits.float().cpu().numpy()
            parts.append(decode(logits, None if encoded.targets is None else encoded.targets[rows]))
            places.append(rows)
            if bar is not None:
                bar.advance(len(rows))
    back = np.argsort(np.concatenate(places))
    losses = [part.losses for part in parts if part.losses is not None]
    return Predictions(
        np.concatenate([part.values for part in parts])[back],
        np.concatenate([part.scores for part in parts])[back],
        np.concatenate(losses)[back] if losses else None,
    )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
