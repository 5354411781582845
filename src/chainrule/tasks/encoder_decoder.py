"""Encoder-decoder models by teacher forcing: the decoder reads the target up to each token that it is to predict.

A row is two sequences, the source and the target, the tokens of the second being learned. Batches hold them side by
side; here they are taken apart, and the model's own way of shifting makes of a target what its decoder reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Spec
from chainrule.core.task import Predictions
from chainrule.data.batch import IGNORED, Batch
from chainrule.data.encode import Encoded, joined, offsets_of
from chainrule.data.written import references_of
from chainrule.errors import ModelError, Problem, Where
from chainrule.models.adapters import plain_model
from chainrule.tasks.language_model import LOSSES, TOLERANCE, Labelled, NextTokenObjective, scored
from chainrule.tasks.objectives import take_loss

CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Paired:
    """Tokenises sources and targets as the model's tokenizer does it, each with at most `max_length` tokens.

    A source that is too long is cut as the tokenizer cuts it. A target that is too long loses its end, and with it the
    token that ends it: the model is not taught to stop there. Every other target has that token, once.

    Attributes:
        instruction: stands before each source, with a blank between them.
    """

    instruction: str | None

    def __call__(self, tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
        """Tokenise rows.

        Args:
            inputs: one column of sources.
            targets: (n,) lists of references as JSON, of which the first is learned; None to write them.

        Returns:
            Two sequences a row, source and target, with `trained` marking the latter and `targets` (n,) counting its
            tokens; without targets, one. `full_lengths` are those of the longer of the two.
        """
        (sources,) = inputs.values()

        def pieces() -> Iterator[Encoded]:
            for start in range(0, len(sources), CHUNK_ROWS):
                few = slice(start, start + CHUNK_ROWS)
                right = None if targets is None else [references_of(target)[0] for target in targets[few]]
                yield self._encode_few(tokenizer, list(sources[few]), right, max_length)

        return joined(pieces())

    def _encode_few(self, tokenizer: Any, sources: list[str], right: list[str] | None, max_length: int) -> Encoded:
        asked = sources if self.instruction is None else [f"{self.instruction} {text}" for text in sources]
        full = np.array([len(ids) for ids in tokenizer(asked, verbose=False)["input_ids"]], dtype=np.int64)
        rows = tokenizer(asked, truncation=True, max_length=max_length)["input_ids"]
        if right is None:
            ids = [np.asarray(row, np.int32) for row in rows]
            return Encoded(np.concatenate(ids), offsets_of([len(row) for row in ids]), None, full, None)
        end = tokenizer.eos_token_id
        learned = [_ended(ids, end) for ids in tokenizer(text_target=right, verbose=False)["input_ids"]]
        whole = np.maximum(full, [len(ids) for ids in learned])
        pairs = [
            np.asarray(ids, np.int32)
            for source, target in zip(rows, learned, strict=True)
            for ids in (source, target[:max_length])
        ]
        lengths = np.array([len(ids) for ids in pairs])
        return Encoded(
            ids=np.concatenate(pairs),
            offsets=offsets_of(lengths),
            types=None,
            full_lengths=whole,
            targets=lengths[1::2].astype(np.int64),
            trained=np.repeat(np.tile([False, True], len(rows)), lengths),
            sequences=np.arange(0, len(pairs) + 1, 2, dtype=np.int64),
        )


def _ended(ids: list[int], end: int) -> list[int]:
    """A target with the token that ends it once, where the tokenizer puts it, or else at its end."""
    places = [place for place, token in enumerate(ids) if token == end and place > 0]
    if not places:
        return [*ids, end]
    return [token for place, token in enumerate(ids) if place not in places[:-1]]  # others were in the text


def prepare_tokenizer(tokenizer: Any) -> None:
    """Make sure that texts can be ended and padded, and pad them at their end.

    Raises:
        ModelError: there is no token for one of the two.
    """
    if tokenizer.eos_token is None or tokenizer.pad_token is None:
        got = "no eos_token" if tokenizer.eos_token is None else "no pad_token"
        problem = Problem("a tokenizer with a token that ends a text, and one that pads it", got, _TODO, _WHERE)
        raise ModelError("The tokenizer of this model cannot be used for seq2seq.", [problem])
    tokenizer.padding_side = "right"


def objective(loss: Spec, targets: np.ndarray) -> NextTokenObjective:
    """Cross-entropy of the next token, over the tokens of the targets."""
    made: NextTokenObjective = take_loss(LOSSES, loss)()
    return replace(made, find=find_labelled)


def find_labelled(model: Any, batch: Batch) -> Labelled:
    """The decoder's states that predict a token of a target, those tokens, and the rows they stand in."""
    if batch.targets is None:
        raise ValueError("rows to learn from have targets")
    ids, labels = batch.inputs["input_ids"], batch.targets[1::2]
    mask = batch.inputs.get("attention_mask", torch.ones_like(ids))
    sources, mask = (values[0::2, : int(mask[0::2].sum(1).max())] for values in (ids, mask))
    labels = labels[:, : int((labels != IGNORED).sum(1).max())]
    states = _states(model, sources, mask, labels)
    rows, places = torch.nonzero(labels != IGNORED, as_tuple=True)
    return Labelled(states[rows, places], labels[rows, places], rows, _Logits(plain_model(model)))


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """Score the targets of a batch: correct first choices, exp(−loss) as confidence, and loss per token, row by row."""
    return scored(find_labelled(model, batch), len(batch.rows))


@dataclass(frozen=True)
class _Logits:
    """The decoder's states (n, d) to logits (n, vocabulary), as the model does it."""

    model: Any

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        if getattr(self.model.config, "scale_decoder_outputs", False):  # T5 with one table for both ends
            states = states * self.model.config.d_model**-0.5
        values: torch.Tensor = self.model.get_output_embeddings()(states)
        bias = getattr(self.model, "final_logits_bias", None)
        return values if bias is None else values + bias.to(values.dtype)


def _states(model: Any, sources: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The decoder's last hidden states (b, t, d), each of which predicts the label at its place."""
    plain = plain_model(model)
    read = plain.get_encoder()(input_ids=sources, attention_mask=mask).last_hidden_state
    states: torch.Tensor = plain.get_decoder()(
        input_ids=plain.prepare_decoder_input_ids_from_labels(labels),
        encoder_hidden_states=read,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return states


def check_model(model: Any) -> None:
    """Make sure that the parts give the logits of the whole.

    Raises:
        ModelError: they do not, or there are no such parts.
    """
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise _unusable(f"a {model.config.model_type}, which has another way to begin a target")
    device = next(model.parameters()).device
    ids = torch.arange(3, 9, device=device).remainder(model.config.get_text_config().vocab_size)[None]
    mask = torch.ones_like(ids)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        apart = _Logits(model)(_states(model, ids, mask, ids))
        whole = model(input_ids=ids, attention_mask=mask, labels=ids).logits
    model.train(was_training)
    if float((apart - whole).abs().max()) > TOLERANCE * max(float(whole.abs().max()), 1.0):
        raise _unusable("one with another way from the decoder's states to logits")


_TODO = "Choose an encoder-decoder such as T5, BART or Marian, or a causal language model such as smollm2."
_WHERE = Where(field="model.name")


def _unusable(got: str) -> ModelError:
    expected = "an encoder-decoder that works like T5 or BART"
    return ModelError("This model cannot be used for seq2seq.", [Problem(expected, got, _TODO, _WHERE)])
