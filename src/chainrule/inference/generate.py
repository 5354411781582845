"""Texts written by a fine-tuned model: replies to conversations, and what is written of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig

from chainrule.core.recipe import Section
from chainrule.core.task import Task
from chainrule.data.batch import by_length, collate
from chainrule.errors import Problem, RecipeError, Where
from chainrule.inference.predict import Forward
from chainrule.models.adapters import plain_model, virtual_tokens, with_prompt
from chainrule.system.progress import Bar
from chainrule.tasks.conversation import ends_of

NEW_TOKENS = 256
COLDEST = 1e-3  # a temperature below draws nothing but the likeliest token, and dividing by it may overflow
BATCH_TOKENS = 16_384  # what is read and written, padded: what the memory for keys and values grows with


class Writing(Section):
    """How texts are written.

    Attributes:
        max_new_tokens: a text that has not ended by then is cut there; None for 256, or half of the model's positions
            where it has fewer than 512.
        beams: how many beginnings the search goes on with, of which the likeliest text is taken in the end.
        temperature: 0, or less than 0.001, takes the most likely token each time; above, tokens are drawn from the
            model's probabilities sharpened (below 1) or flattened (above 1) by it.
        top_p: tokens are drawn from the likeliest ones that have this much of the probability together.
        seed: decides what is drawn.
    """

    max_new_tokens: int | None = Field(default=None, ge=1)
    beams: int = Field(default=1, ge=1, le=64)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True)
class Replies:
    """What was written.

    Attributes:
        texts: (n,).
        tokens: (n,) how many tokens each has, without the one that ends it.
        finished: (n,) whether the model ended its text; False where it was cut at `max_new_tokens`.
        cut: (n,) whether what is answered was too long to be read whole.
    """

    texts: list[str]
    tokens: np.ndarray
    finished: np.ndarray
    cut: np.ndarray


def write_texts(
    forward: Forward,
    tokenizer: Any,
    task: Task,
    inputs: Mapping[str, Sequence[str]],
    writing: Writing,
    limit: int | None = None,
    bar: Bar | None = None,
) -> Replies:
    """Write a text for each row, in their order.

    The weights are held in the number format of the training from here on: casting them for every token would take
    most of the time.

    Args:
        inputs: what is read, by field.
        limit: tokens of what is read at most; None for as many as the model has positions.

    Raises:
        RecipeError: `max_new_tokens` leaves no room for a prompt.
    """
    model = forward.model
    longest, room = lengths_of(model, writing)
    encoded = task.encode(tokenizer, inputs, None, room if limit is None else min(room, limit))
    model = held(forward)
    reads_apart = bool(model.config.is_encoder_decoder)
    ends = ends_in(model, tokenizer)
    config = settings_of(model, writing, longest, ends, forward.pad_id)
    count = len(encoded)
    texts, tokens, finished = [""] * count, np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    torch.manual_seed(writing.seed)
    for rows in by_length((encoded.lengths + longest) * writing.beams, BATCH_TOKENS):
        batch = collate(encoded, rows, pad_id=forward.pad_id, left=not reads_apart, device=forward.device)
        given = {"attention_mask": torch.ones_like(batch.inputs["input_ids"]), **batch.inputs}
        with torch.inference_mode():
            written = generated(model, given, config).cpu().numpy()
        for row, ids in zip(rows, written, strict=True):
            stops = np.flatnonzero(np.isin(ids, ends))
            finished[row] = len(stops) > 0
            kept = ids[: stops[0]] if len(stops) else ids
            tokens[row] = len(kept)
            texts[row] = tokenizer.decode(kept, skip_special_tokens=True).strip()
        if bar is not None:
            bar.advance(len(rows))
    return Replies(texts, tokens, finished, encoded.full_lengths > encoded.lengths)


def held(forward: Forward) -> Any:
    """The model with its weights in the number format of the training, in which they stay."""
    return forward.model.to(torch.bfloat16 if forward.precision == "bfloat16" else torch.float32).eval()


def generated(model: Any, inputs: dict[str, torch.Tensor], config: GenerationConfig, **more: Any) -> torch.Tensor:
    """The ids of new tokens (b, t); `more` goes to transformers' `generate`."""
    if virtual_tokens(model):  # given embeddings, the model gives back new tokens alone
        whole = with_prompt(model, inputs)
        ids: torch.Tensor = plain_model(model).generate(**whole, generation_config=config, **more)
        return ids
    ids = model.generate(**inputs, generation_config=config, **more)
    if model.config.is_encoder_decoder:
        return ids[:, 1:]  # the token that the decoder begins with
    return ids[:, inputs["input_ids"].shape[1] :]


def settings_of(model: Any, writing: Writing, longest: int, ends: list[int], pad_id: int) -> GenerationConfig:
    """How to write; an encoder-decoder's own settings say how it begins.

    It is not made to end where the limit cuts it off, so that one can see whether it would have.
    """
    config = deepcopy(model.generation_config) if model.config.is_encoder_decoder else GenerationConfig()
    drawn = writing.temperature >= COLDEST
    config.update(
        max_length=None,
        max_new_tokens=longest,
        num_beams=writing.beams,
        do_sample=drawn,
        temperature=writing.temperature if drawn else None,
        top_k=0 if drawn else None,
        top_p=writing.top_p if drawn else None,
        pad_token_id=pad_id,
        eos_token_id=ends,
        forced_eos_token_id=None,
    )
    return config


def ends_in(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a text."""
    if not model.config.is_encoder_decoder:
        return ends_of(model, tokenizer)
    own = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(int(token) for token in found if token is not None)


def lengths_of(model: Any, writing: Writing) -> tuple[int, int]:
    """The longest text that is written, and how many tokens may be read before it."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20
    positions -= virtual_tokens(model)
    longest = writing.max_new_tokens or min(NEW_TOKENS, positions // 2)
    if longest >= positions:
        where = Where(field="max_new_tokens")
        problem = Problem(f"a number from 1 to {positions - 1}", str(longest), "Change it.", where)
        raise RecipeError("The replies cannot have this length.", [problem])
    return longest, positions if model.config.is_encoder_decoder else positions - longest
