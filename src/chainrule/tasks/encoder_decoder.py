"""Encoder-decoder models by teacher forcing: the decoder reads the target up to each token that it is to predict.

A row is two sequences, the source and the target, the tokens of the second being learned. Batches hold them side by
side; here they are taken apart, and the model's own way of shifting makes of a target what its decoder reads.
"""

from __future__ import annotations

import re
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
from chainrule.errors import ModelError, Problem, RecipeError, Where
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
        languages: of sources and of targets, as the tokenizer was told by `prepare_tokenizer`.
    """

    instruction: str | None
    languages: tuple[str | None, str | None] = (None, None)

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
        end, after = tokenizer.eos_token_id, language_of(tokenizer)
        made = tokenizer(text_target=right, verbose=False)["input_ids"]
        learned = [_ended(ids[:-1] if after in ids[-1:] else ids, end) for ids in made]
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


def prepare_tokenizer(tokenizer: Any, languages: tuple[str | None, str | None] = (None, None)) -> None:
    """Make sure that texts can be ended and padded, pad them at their end, and mark them with their languages.

    Args:
        languages: of sources and of targets, as a multilingual tokenizer calls them; it is saved with them.

    Raises:
        ModelError: there is no token for one of the first two.
        RecipeError: the tokenizer does not know a language, or that of the targets is not said.
    """
    if tokenizer.eos_token is None or tokenizer.pad_token is None:
        got = "no eos_token" if tokenizer.eos_token is None else "no pad_token"
        problem = Problem("a tokenizer with a token that ends a text, and one that pads it", got, _TODO, _WHERE)
        raise ModelError("The tokenizer of this model cannot be used for seq2seq.", [problem])
    tokenizer.padding_side = "right"
    for name, attribute, code in zip(_LANGUAGES, ("src_lang", "tgt_lang"), languages, strict=True):
        if code is not None:
            _require_language(tokenizer, attribute, code, name)
            setattr(tokenizer, attribute, code)
            tokenizer.init_kwargs[attribute] = code  # what is saved
    if getattr(tokenizer, "tgt_lang", "") is None:
        todo = f"Set task.options.{_LANGUAGES[1]}, as the tokenizer calls it (de_DE, deu_Latn, …)."
        problem = Problem("the language of the targets", "nothing", todo, Where(field=f"task.options.{_LANGUAGES[1]}"))
        raise RecipeError("This model writes in several languages.", [problem])


def _require_language(tokenizer: Any, attribute: str, code: str, name: str) -> None:
    where = Where(field=f"task.options.{name}")
    if not hasattr(tokenizer, attribute):
        problem = Problem("a tokenizer that marks languages", "one of another kind", "Leave it out.", where)
        raise RecipeError("This model's tokenizer marks no languages.", [problem])
    if code not in tokenizer.all_special_tokens:
        known = [token for token in tokenizer.all_special_tokens if _LANGUAGE_CODE.fullmatch(token)]
        problem = Problem(f"one of {', '.join(known[:60])}", code, "Choose one of these.", where)
        raise RecipeError("The tokenizer does not know this language.", [problem])


def language_of(tokenizer: Any) -> int | None:
    """The id of the token that marks the targets' language; None where there is none."""
    code = getattr(tokenizer, "tgt_lang", None)
    return None if code is None else int(tokenizer.convert_tokens_to_ids(code))


def begin_targets(model: Any, tokenizer: Any) -> None:
    """Let a model, and its own settings, begin what it writes with the mark of the targets' language.

    Some have it as the first token of a target (mBART-50), others as the token that the decoder begins with (mBART);
    where the tokenizer puts it tells which.
    """
    language = language_of(tokenizer)
    if language is None:
        return
    ids = tokenizer(text_target="a")["input_ids"]
    if ids[0] == language:
        model.generation_config.forced_bos_token_id = language
    elif ids[-1] == language:
        model.config.decoder_start_token_id = language
        model.generation_config.decoder_start_token_id = language


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
        input_ids=_shifted(plain, labels),
        encoder_hidden_states=read,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return states


def _shifted(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """What the decoder reads to predict these labels (b, t)."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        shifted: torch.Tensor = model.prepare_decoder_input_ids_from_labels(labels)
        return shifted
    start, padding = model.config.decoder_start_token_id, model.config.pad_token_id
    known = labels.masked_fill(labels == IGNORED, padding)
    return torch.cat([known.new_full((len(known), 1), start), known[:, :-1]], dim=1)


def check_model(model: Any) -> None:
    """Make sure that the parts give the logits of the whole.

    Raises:
        ModelError: they do not, or there are no such parts.
    """
    knows_start = None not in (getattr(model.config, "decoder_start_token_id", None), model.config.pad_token_id)
    if not hasattr(model, "prepare_decoder_input_ids_from_labels") and not knows_start:
        raise _unusable(f"a {model.config.model_type} that does not say how a target begins (decoder_start_token_id)")
    device = next(model.parameters()).device
    ids = torch.arange(3, 9, device=device).remainder(model.config.get_text_config().vocab_size)[None]
    mask = torch.ones_like(ids)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        apart = _Logits(model)(_states(model, ids, mask, ids))
        whole = model(input_ids=ids, attention_mask=mask, decoder_input_ids=_shifted(model, ids)).logits
    model.train(was_training)
    if float((apart - whole).abs().max()) > TOLERANCE * max(float(whole.abs().max()), 1.0):
        raise _unusable("one with another way from the decoder's states to logits")


_LANGUAGES = ("source_language", "target_language")
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}_[A-Za-z]{2,4}")
_TODO = "Choose an encoder-decoder such as T5, BART or Marian, or a causal language model such as smollm2."
_WHERE = Where(field="model.name")


def _unusable(got: str) -> ModelError:
    expected = "an encoder-decoder that works like T5 or BART"
    return ModelError("This model cannot be used for seq2seq.", [Problem(expected, got, _TODO, _WHERE)])
