"""From a batch to predictions, for tasks whose logits are a few numbers a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp, softmax

from chainrule.core.task import Predictions, Read
from chainrule.data.batch import Batch

READ_TOKENS = 4096  # padded tokens of one forward, where a single row has more

Decode = Callable[[np.ndarray, np.ndarray | None], Predictions]


def from_logits(decode: Decode) -> Read:
    """Read a batch by decoding its logits (b, labels) in float32, with the targets of its rows or None."""

    def read(model: Any, batch: Any, encoded: Any) -> Predictions:
        targets = None if encoded.targets is None else encoded.targets[batch.rows]
        return decode(model(**batch.inputs).logits.float().cpu().numpy(), targets)

    return read


def decode_classes(logits: np.ndarray, targets: np.ndarray | None) -> Predictions:
    """The likeliest class of each row, its probability and the cross-entropy, of logits (b, classes)."""
    logits = logits.astype(np.float64)
    values = logits.argmax(-1)
    scores = softmax(logits, axis=-1)[np.arange(len(values)), values]
    losses = None
    if targets is not None:
        losses = logsumexp(logits, axis=-1) - logits[np.arange(len(targets)), targets]
    return Predictions(values, scores, losses)


def decode_scores(logits: np.ndarray, targets: np.ndarray | None) -> Predictions:
    """As `decode_classes`, with the probabilities of all classes (b, classes) as scores."""
    return replace(decode_classes(logits, targets), scores=softmax(logits.astype(np.float64), axis=-1))


def few_sequences(batch: Batch) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Inputs and targets (s, t) of a batch, a few sequences at a time where a row has many.

    Raises:
        ValueError: its tokens have no targets, not even IGNORED.
    """
    if batch.targets is None:
        raise ValueError("the tokens of these rows have targets")
    for few in few_at_once(batch):
        yield {name: values[few] for name, values in batch.inputs.items()}, batch.targets[few]


def few_at_once(batch: Batch) -> Iterator[slice]:
    """The sequences of a batch, of at most READ_TOKENS padded tokens at a time, or one."""
    count, width = next(iter(batch.inputs.values())).shape[:2]
    size = max(1, READ_TOKENS // max(1, width))
    return (slice(start, start + size) for start in range(0, count, size))
