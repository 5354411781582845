"""A student that writes learns from what a fine-tuned teacher gives to each token of the replies, beside the tokens.

All probabilities of a vocabulary would be too many to keep, so of each place the teacher's likeliest tokens are kept
and all others are one token more; the Kullback–Leibler divergence of such sums is at most that of the whole (the data
processing inequality). The teacher reads each row once, before step one; what it says lies in a file of the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from chainrule.core.recipe import Distillation
from chainrule.data.batch import Batch, by_length, collate
from chainrule.data.encode import Encoded
from chainrule.inference.predict import BATCH_TOKENS, Predictor, evaluating
from chainrule.system.files import atomic_path
from chainrule.system.progress import Display
from chainrule.system.store import Store
from chainrule.tasks.language_model import NextTokenObjective, pieces

TOP = 32  # tokens of a place that are kept
LIMIT_BYTES = 4 * 2**30  # of what all teachers said
SMALLEST = 1e-6  # probability of all other tokens


@dataclass(frozen=True)
class Likely:
    """What a teacher says of the places of the training rows at which a token is learned.

    Attributes:
        places: (n,) of `place_of`: the likeliest tokens and the logarithms of their probabilities at the temperature.
        starts: (rows + 1,) where the places of each row begin.
    """

    places: np.ndarray
    starts: np.ndarray

    def of(self, rows: Sequence[int] | np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and logarithms (m, k) of the places of these rows, row after row."""
        found = np.concatenate([self.places[self.starts[row] : self.starts[row + 1]] for row in rows])
        tokens = torch.from_numpy(found["token"].astype(np.int64))
        return tokens.to(device), torch.from_numpy(found["logarithm"].astype(np.float32)).to(device)


@dataclass(frozen=True)
class TaughtReplies:
    """(1 − weight) of the cross-entropy of the tokens, and weight of how far the student is from its teacher.

    Attributes:
        inner: the task's objective.
    """

    inner: NextTokenObjective
    options: Distillation
    likely: Likely

    def accumulate(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        """Gradients of the sum over the labelled tokens of a batch."""
        states, wanted, _, logits = self.inner.find(model, batch)
        tokens, likely = self.likely.of(batch.rows, states.device)
        if len(tokens) != len(wanted):
            raise ValueError(f"{len(wanted)} labelled tokens, of which the teacher knows {len(tokens)}")
        total = torch.zeros((), dtype=torch.float64 if states.dtype == torch.float64 else torch.float32)
        total, gradient = total.to(states.device), torch.empty_like(states) if states.requires_grad else None
        for piece in pieces(len(wanted), self.inner.chunk):
            leaf = states[piece].detach().requires_grad_(gradient is not None)
            values = logits(leaf)
            loss, slope = self._learned(values.detach(), wanted[piece], tokens[piece], likely[piece])
            with torch.autocast(states.device.type, enabled=False):
                if values.requires_grad:
                    values.backward(slope)  # type: ignore[no-untyped-call]
            total += loss
            if gradient is not None and leaf.grad is not None:
                gradient[piece] = leaf.grad
        if gradient is not None:
            with torch.autocast(states.device.type, enabled=False):
                states.backward(gradient)  # type: ignore[no-untyped-call]
        return total, len(wanted)

    def _learned(
        self, values: torch.Tensor, wanted: torch.Tensor, tokens: torch.Tensor, likely: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of some logits (m, vocabulary), and its gradient in their type."""
        with torch.enable_grad(), torch.autocast(values.device.type, enabled=False):
            wide = (values if values.dtype == torch.float64 else values.float()).requires_grad_()
            weight, smoothing = self.options.weight, self.inner.label_smoothing
            own = functional.cross_entropy(wide, wanted, reduction="sum", label_smoothing=smoothing)
            loss = (1 - weight) * own + weight * divergence(wide, tokens, likely, self.options.temperature).sum()
            (slope,) = torch.autograd.grad(loss, wide)
        return loss.detach(), slope.to(values.dtype)


def divergence(logits: torch.Tensor, tokens: torch.Tensor, likely: torch.Tensor, temperature: float) -> torch.Tensor:
    """(m,) how far a student is from its teacher, times the square of the temperature as in `distillation`.

    The Kullback–Leibler divergence over the teacher's likeliest tokens and one token that stands for all others.

    Args:
        logits: (m, vocabulary) of the student.
        tokens: (m, k) the teacher's likeliest tokens.
        likely: (m, k) the logarithms of their probabilities at the temperature.
    """
    said = functional.log_softmax(logits / temperature, -1).gather(1, tokens)
    likely = likely.to(said)
    shares = likely.exp()
    rest = (1 - shares.sum(1)).clamp_min(SMALLEST)
    ours = (1 - said.exp().sum(1)).clamp_min(SMALLEST)
    of_kept = (shares * (likely - said)).sum(1)
    return temperature**2 * (of_kept + rest * (rest.log() - ours.log()))


def place_of(vocabulary: int) -> np.dtype[Any]:
    """What is kept of a place."""
    count = min(TOP, vocabulary)
    return np.dtype([("token", "<i4", (count,)), ("logarithm", "<f2", (count,))])


def listen(teacher: Predictor, train: Encoded, objective: NextTokenObjective, temperature: float,
           display: Display) -> Likely:  # fmt: skip
    """What a teacher that reads the student's tokens says of the training rows; from the cache where it is there.

    Raises:
        OSError: it cannot be kept.
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(_counts(train))])
    store, place = Store("teachers", LIMIT_BYTES), place_of(teacher.forward.model.config.get_text_config().vocab_size)
    path = store.entry(f"{_key(teacher, train, temperature)}.bin")
    if not path.is_file():
        _ask(path, teacher, train, objective, (temperature, starts, place), display)
    store.use({path})
    return Likely(np.memmap(path, dtype=place, mode="r", shape=(int(starts[-1]),)), starts)


def _counts(train: Encoded) -> np.ndarray:
    """(n,) places of each row at which a token is learned; a row's first token is not."""
    if train.trained is None:
        raise ValueError("rows whose tokens are learned are needed")
    marks = train.trained.copy()
    marks[train.offsets[:-1][np.diff(train.offsets) > 0]] = False
    return np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(marks)])[train.offsets])


def _ask(path: Path, teacher: Predictor, train: Encoded, objective: NextTokenObjective,
         how: tuple[float, np.ndarray, np.dtype[Any]], display: Display) -> None:  # fmt: skip
    """Write what the teacher says of all rows into one file, which appears when it is whole."""
    forward, (temperature, starts, place) = teacher.forward, how
    title = f"what {teacher.artifact.manifest.base_model} says of the training rows"
    with (
        atomic_path(path) as unfinished,
        display.bar(title, len(train)) as bar,
        evaluating(forward.model),
        torch.inference_mode(),
        forward.autocast(),
    ):
        places = np.memmap(unfinished, dtype=place, mode="w+", shape=(int(starts[-1]),))
        for rows in by_length(train.lengths, BATCH_TOKENS):
            batch = collate(train, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)
            found = objective.find(forward.model, batch)
            targets = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
            for piece in pieces(len(targets), objective.chunk):
                said = functional.log_softmax(found.logits(found.states[piece]).float() / temperature, -1)
                likely, tokens = said.topk(place["token"].shape[0])
                places["token"][targets[piece]] = tokens.cpu().numpy()
                places["logarithm"][targets[piece]] = likely.cpu().numpy()
            bar.advance(len(rows))
        places.flush()
        del places


def _key(teacher: Predictor, train: Encoded, temperature: float) -> str:
    """The name of the file: a hash of all that it follows from."""
    manifest = teacher.artifact.manifest
    facts = [manifest.weights_sha256, str(temperature), str(TOP), teacher.forward.precision, torch.__version__]
    key = hashlib.sha256("\n".join(facts).encode())
    for array in (train.ids, train.offsets, train.trained):
        key.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return key.hexdigest()[:32]
