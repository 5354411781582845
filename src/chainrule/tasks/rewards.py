"""Two replies a row, and losses on how much more likely training has made one than the other.

A row is two sequences: its turns with the preferred reply, and with the other. What the model before step one says of
both is computed once; logits are in memory for a few positions at a time, twice: to add up log-likelihoods, and then,
weighted with what each sequence has to do with the loss, for their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from chainrule.core.recipe import Section, Spec
from chainrule.core.shelf import Entry
from chainrule.core.task import Objective, Predictions
from chainrule.data.batch import Batch
from chainrule.data.chat import MESSAGES
from chainrule.data.encode import Encoded
from chainrule.data.preferences import pair_of
from chainrule.metrics.preferences import BETA
from chainrule.tasks import conversation
from chainrule.tasks.language_model import CHUNK, CausalModel, chunked_cross_entropy, labelled, parts_of
from chainrule.tasks.objectives import take_loss

RowLoss = Callable[[torch.Tensor], torch.Tensor]  # (b,) differences of log-ratios -> (b,) losses


class SigmoidOptions(Section):
    """`beta`: how dear it is to move away from the model before training.

    `label_smoothing`: the share of rows whose preference is taken to be the wrong way round.
    """

    beta: float = Field(default=BETA, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


class IdentityOptions(Section):
    """`beta`: the difference of log-ratios that is aimed at is 1 / (2 · beta)."""

    beta: float = Field(default=BETA, gt=0)


def _sigmoid(options: SigmoidOptions) -> RowLoss:
    """Rafailov et al. (2023), Direct Preference Optimization, equation 7; with smoothing Mitchell (2023), "cDPO"."""
    beta, smoothing = options.beta, options.label_smoothing

    def loss(difference: torch.Tensor) -> torch.Tensor:
        right, wrong = functional.logsigmoid(beta * difference), functional.logsigmoid(-beta * difference)
        return -(1 - smoothing) * right - smoothing * wrong

    return loss


def _identity(options: IdentityOptions) -> RowLoss:
    """Azar et al. (2023), A General Theoretical Paradigm to Understand Learning from Human Preferences, equation 17."""
    return lambda difference: (difference - 1 / (2 * options.beta)).square()


LOSSES = {
    "dpo": Entry(SigmoidOptions, _sigmoid, "log-sigmoid of the difference of log-ratios"),
    "ipo": Entry(IdentityOptions, _identity, "squared distance of that difference from a target"),
}


@dataclass(frozen=True)
class PreferenceObjective:
    """The sum over rows of a loss of the difference of log-ratios; the count is the number of rows."""

    row_loss: RowLoss

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        parts = parts_of(model)
        hidden = parts.hidden(batch.inputs)
        states, wanted, sequences = labelled(hidden, batch.targets)
        with torch.no_grad():
            summed = _summed(parts, states, wanted, sequences, len(hidden))
        summed.requires_grad_()
        loss = self.row_loss(_differences(summed, batch.references)).sum()
        with torch.autocast(states.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        if summed.grad is None:
            raise ValueError("the loss has no gradient")
        _, gradient = chunked_cross_entropy(states, wanted, parts.logits, weights=-summed.grad[sequences])
        if gradient is not None:
            with torch.autocast(states.device.type, enabled=False):
                states.backward(gradient)  # type: ignore[no-untyped-call]
        return loss.detach(), len(batch)


def objective(loss: Spec, targets: Any) -> Objective:
    """How much likelier than before the preferred reply has become than the other."""
    return PreferenceObjective(take_loss(LOSSES, loss)())


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise conversations with both their replies; without targets, with the prompt for a reply.

    Args:
        inputs: the turns before the replies, as JSON, under "messages".
        targets: (n,) pairs of replies as JSON.
        max_length: longer rows are cut at their end.

    Returns:
        Two sequences a row, of which the last reply's tokens are learned, unless one of the two has none: then none.
        `targets` (n, 2) counts the tokens of both replies; `references` are 0 until a model was asked.
    """
    if targets is None:
        return conversation.encode(tokenizer, inputs, None, max_length)
    contexts = [turns for turns in inputs[MESSAGES] for _ in range(2)]
    replies = [reply for pair in targets for reply in pair_of(pair)]
    flat = conversation.encode(tokenizer, {MESSAGES: contexts}, np.array(replies, dtype=object), max_length)
    trained = _last_replies(flat)
    counts = np.add.reduceat(np.append(trained, False), flat.offsets[:-1]).astype(np.int64)
    counts[np.diff(flat.offsets) == 0] = 0
    counts = counts.reshape(-1, 2)
    unusable = np.repeat((counts == 0).any(1), 2)
    trained &= ~np.repeat(unusable, np.diff(flat.offsets))
    sequences = np.arange(0, len(flat.offsets), 2, dtype=np.int64)
    references = np.zeros(counts.shape, np.float32)
    done = replace(flat, targets=counts, trained=trained, sequences=sequences, references=references)
    longest = flat.full_lengths.reshape(-1, 2).max(1)
    refused = {row // 2: why for row, why in flat.refused.items()}
    return replace(done, full_lengths=longest, refused=refused)


def _last_replies(flat: Encoded) -> np.ndarray:
    """(tokens,) the tokens of each sequence's last reply: earlier ones are part of what both replies answer."""
    if flat.trained is None:
        raise ValueError("conversations with replies have tokens to learn")
    kept = np.array(flat.trained)
    for start, end in zip(flat.offsets[:-1].tolist(), flat.offsets[1:].tolist(), strict=True):
        gaps = np.flatnonzero(~flat.trained[start:end])
        learned = np.flatnonzero(flat.trained[start:end])
        if len(learned) and len(gaps):
            before = gaps[gaps < learned[-1]]
            kept[start : start + (int(before[-1]) if len(before) else 0)] = False
    return kept


def likelihoods(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """log p of both replies of each row (b, 2), as `values`."""
    parts = parts_of(model)
    hidden = parts.hidden(batch.inputs)
    if batch.targets is None:
        raise ValueError("rows without replies have no likelihood")
    states, wanted, sequences = labelled(hidden, batch.targets)
    summed = _summed(parts, states, wanted, sequences, len(hidden)).reshape(-1, 2).cpu().numpy()
    return Predictions(summed, np.ones(len(summed)))


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """Differences of log-ratios, how sure they make the model (their sigmoid, β = 0.1), and DPO's loss at that β."""
    if encoded.references is None:
        raise ValueError("the likelihoods before training are needed")
    now = torch.from_numpy(likelihoods(model, batch, encoded).values).flatten()
    difference = _differences(now, torch.from_numpy(encoded.references[batch.rows]))
    losses = _sigmoid(SigmoidOptions())(difference)
    return Predictions(difference.numpy(), torch.sigmoid(BETA * difference).numpy(), losses.numpy())


def _differences(summed: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Log-likelihoods (2b,) and those before training (b, 2) -> differences of log-ratios (b,)."""
    ratios = summed.view(-1, 2) - references.to(summed)
    return ratios[:, 0] - ratios[:, 1]


def _summed(
    parts: CausalModel, states: torch.Tensor, wanted: torch.Tensor, sequences: torch.Tensor, count: int
) -> torch.Tensor:
    """log p of the labelled tokens of each sequence: (n, d), (n,), (n,) -> (count,) float64."""
    found = torch.zeros(count, dtype=torch.float64, device=states.device)
    for start in range(0, len(wanted), CHUNK):
        few = slice(start, start + CHUNK)
        logits = parts.logits(states[few])
        wide = logits if logits.dtype == torch.float64 else logits.float()
        each = functional.cross_entropy(wide, wanted[few], reduction="none")
        found.index_add_(0, sequences[few], -each.double())
    return found
