"""The loss of a causal language model, with logits only where a token is to be predicted, a few positions at a time.

A row of 500 tokens over a vocabulary of 50,000 has 100 MB of logits in float32. Here the trunk gives hidden states,
those of the positions before a labelled token are picked, and the head turns them into logits in pieces. Each piece's
backward is done at once, so that one piece of logits is all there ever is; the trunk then has one backward of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from chainrule.core.recipe import Spec
from chainrule.core.shelf import Entry
from chainrule.core.task import Objective, Predictions
from chainrule.data.batch import IGNORED
from chainrule.errors import ModelError, Problem, Where
from chainrule.kernels.cross_entropy import cross_entropy_gradient
from chainrule.models.adapters import plain_model, virtual_tokens, with_prompt
from chainrule.tasks.objectives import Smoothing, take_loss

CHUNK = 512  # positions whose logits are in memory at once: 50 MB in bfloat16 for 50,000 words
TOLERANCE = 1e-3

Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CausalModel:
    """A causal language model in two parts, with or without adapters.

    Attributes:
        model: all of it.
        trunk: token ids to hidden states, everything below the head.
        logits: hidden states (n, d) to logits (n, vocabulary), scaling and capping included.
    """

    model: Any
    trunk: Any
    logits: Logits

    def hidden(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last hidden states (b, t, d), those of a trained prompt left off."""
        states: torch.Tensor = self.trunk(**with_prompt(self.model, inputs), use_cache=False).last_hidden_state
        return states[:, virtual_tokens(self.model) :]


class Labelled(NamedTuple):
    """Hidden states (n, d), the labelled tokens that they predict (n,), the rows of these (n,), and the head."""

    states: torch.Tensor
    wanted: torch.Tensor
    rows: torch.Tensor
    logits: Logits


def find_labelled(model: Any, batch: Any) -> Labelled:
    """The states of a causal language model that predict a labelled token of a batch."""
    parts = parts_of(model)
    return Labelled(*labelled(parts.hidden(batch.inputs), batch.targets), parts.logits)


@dataclass(frozen=True)
class NextTokenObjective:
    """The sum over labelled tokens of the cross-entropy; the count is the number of labelled tokens.

    Attributes:
        label_smoothing: the share of the target that all tokens get alike.
        find: one forward of a batch.
    """

    chunk: int = CHUNK
    label_smoothing: float = 0.0
    find: Callable[[Any, Any], Labelled] = find_labelled

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        states, wanted, _, logits = self.find(model, batch)
        loss, gradient = chunked_cross_entropy(
            states, wanted, logits, label_smoothing=self.label_smoothing, chunk=self.chunk
        )
        if gradient is not None:
            with torch.autocast(states.device.type, enabled=False):  # backward keeps the types that forward chose
                states.backward(gradient)  # type: ignore[no-untyped-call]
        return loss, len(wanted)


LOSSES = {
    "cross-entropy": Entry(
        Smoothing,
        lambda options: NextTokenObjective(label_smoothing=options.label_smoothing),
        "of the next token of what is to be written",
    )
}


def objective(loss: Spec, targets: np.ndarray) -> Objective:
    """Cross-entropy of the next token, over the tokens of the replies."""
    made: Objective = take_loss(LOSSES, loss)()
    return made


def read(model: Any, batch: Any, encoded: Any) -> Predictions:
    """Score the replies of a batch: correct first choices, exp(−loss) as confidence, and loss per token, row by row."""
    found = find_labelled(model, batch)
    if encoded.sequences is not None:
        counts = np.diff(encoded.sequences)[batch.rows]
        rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(found.rows)
        found = found._replace(rows=rows[found.rows])
    return scored(found, len(batch.rows))


def scored(found: Labelled, size: int) -> Predictions:
    """The labelled tokens of `size` rows, row by row."""
    states, wanted, rows, head = found
    losses, right, tokens = (torch.zeros(size, dtype=torch.float64, device=states.device) for _ in range(3))
    for piece in pieces(len(wanted), CHUNK):
        logits = head(states[piece]).float()
        each = functional.cross_entropy(logits, wanted[piece], reduction="none")
        losses.index_add_(0, rows[piece], each.double())
        right.index_add_(0, rows[piece], (logits.argmax(-1) == wanted[piece]).double())
        tokens.index_add_(0, rows[piece], torch.ones_like(each, dtype=torch.float64))
    mean = (losses / tokens).cpu().numpy()
    return Predictions(right.cpu().numpy().astype(np.int64), np.exp(-mean), mean)


def labelled(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The hidden states that predict a labelled token, those tokens, and the rows they stand in.

    Args:
        hidden: (b, t, d).
        targets: (b, t) token ids, IGNORED where nothing is predicted. The state before a token predicts it.

    Returns:
        (n, d), (n,), (n,).
    """
    shifted = targets[:, 1:]
    rows, places = torch.nonzero(shifted != IGNORED, as_tuple=True)
    return hidden[rows, places], shifted[rows, places], rows


def chunked_cross_entropy(
    states: torch.Tensor,
    targets: torch.Tensor,
    logits: Logits,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The summed cross-entropy of logits(states), computed and differentiated `chunk` positions at a time.

    Parameters inside `logits` that are trained get their gradients added here; the caller passes the returned gradient
    on to what made `states`.

    Args:
        states: (n, d).
        targets: (n,) token ids.
        logits: hidden states to logits, position by position.
        weights: (n,) how much the gradient of each position counts; the sum is without them.
        label_smoothing: the share of the target that all tokens get alike: Szegedy et al. (2016), section 7.

    Returns:
        The sum as a 0-d float32 tensor, detached, and its gradient (n, d) in the type of `states`; None where nothing
        below needs one.
    """
    total = torch.zeros((), dtype=torch.float32 if states.dtype != torch.float64 else torch.float64)
    total = total.to(states.device)
    gradient = torch.empty_like(states) if states.requires_grad else None
    for piece in pieces(len(targets), chunk):
        leaf = states[piece].detach().requires_grad_(gradient is not None)
        values = logits(leaf)
        extra = _smoothing(values.detach(), targets[piece], label_smoothing) if label_smoothing else 0.0
        loss, dvalues = cross_entropy_gradient(values.detach(), targets[piece])
        if label_smoothing:
            dvalues = dvalues - label_smoothing / dvalues.shape[1]
            dvalues[torch.arange(len(dvalues)), targets[piece]] += label_smoothing
        if weights is not None:
            dvalues = dvalues * weights[piece, None].to(dvalues)
        if values.requires_grad:
            with torch.autocast(states.device.type, enabled=False):
                values.backward(dvalues)  # type: ignore[no-untyped-call]
        total += loss + extra
        if gradient is not None and leaf.grad is not None:
            gradient[piece] = leaf.grad
    return total, gradient


def _smoothing(values: torch.Tensor, targets: torch.Tensor, share: float) -> torch.Tensor:
    """What smoothing adds to the summed cross-entropy: as far as the mean logit is below that of the target."""
    wide = values if values.dtype == torch.float64 else values.float()
    gaps: torch.Tensor = wide.gather(1, targets[:, None]).squeeze(1) - wide.mean(1)
    return share * gaps.sum()


def parts_of(model: Any) -> CausalModel:
    """Take a causal language model apart; adapters stay in place."""
    plain = plain_model(model)
    head, config = plain.get_output_embeddings(), plain.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)

    def logits(states: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = head(states)
        if scale != 1.0 or divisor != 1.0:
            values = values * (scale / divisor)
        return values if cap is None else torch.tanh(values / cap) * cap

    return CausalModel(model, plain.base_model, logits)


def check_model(model: Any) -> None:
    """Make sure that a model is what this task takes it for.

    A token must not see those after it, and the parts must give the logits of the whole.

    Raises:
        ModelError: it is no causal language model, or has another way from hidden states to logits.
    """
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device).remainder(model.config.get_text_config().vocab_size)[None, :]
    other = torch.cat([ids[:, :-1], ids[:, -1:] - 1], dim=1)
    parts = parts_of(model)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        states = parts.hidden({"input_ids": ids})
        gap = (states - parts.hidden({"input_ids": other}))[:, :-1].abs().max()
        whole = model(input_ids=ids, use_cache=False).logits
        apart = (parts.logits(states[0]) - whole[0]).abs().max()
        size = float(whole.abs().max())
    model.train(was_training)
    if float(gap) > TOLERANCE * float(states.abs().max()):
        raise _unusable("a causal language model, which reads from left to right", "one that sees the whole text")
    if float(apart) > TOLERANCE * max(size, 1.0):
        raise _unusable("a model whose logits come from its last hidden states by its output layer", "another way")


def packs(model: Any) -> bool:
    """Whether rows side by side, positions beginning anew, come out as each row alone: tried on this very model."""
    ids = torch.arange(11, device=next(model.parameters()).device) % model.config.get_text_config().vocab_size
    rows = ids[:5], ids[5:]
    places = torch.cat([torch.arange(len(row), device=ids.device) for row in rows])
    parts, was_training = parts_of(model), model.training
    if virtual_tokens(model) or "position_ids" not in inspect.signature(parts.trunk.forward).parameters:
        return False
    model.eval()
    with torch.inference_mode():
        alone = torch.cat([parts.hidden({"input_ids": row[None]})[0] for row in rows])
        together = parts.hidden({"input_ids": ids[None], "position_ids": places[None]})[0]
    model.train(was_training)
    return float((alone - together).abs().max()) <= TOLERANCE * float(alone.abs().max())


def pieces(count: int, size: int) -> Iterator[slice]:
    """Parts of so many positions, of at most `size` each."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _unusable(expected: str, got: str) -> ModelError:
    todo = "Choose a causal language model such as smollm2; see `chainrule show catalog`."
    problem = Problem(expected=expected, got=got, todo=todo, where=Where(field="model.name"))
    return ModelError("This model cannot be used for text-generation.", [problem])
