"""Replies to conversations, written by a fine-tuned language model: batches of like length, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig

from chainrule.core.recipe import Section
from chainrule.data.batch import by_length, collate
from chainrule.data.chat import MESSAGES
from chainrule.errors import Problem, RecipeError, Where
from chainrule.inference.predict import Predictor
from chainrule.models.adapters import plain_model, virtual_tokens, with_prompt
from chainrule.tasks.conversation import ends_of

NEW_TOKENS = 256
BATCH_TOKENS = 16_384  # prompt and reply, padded: what the memory for keys and values grows with


class Writing(Section):
    """How replies are written.

    Attributes:
        max_new_tokens: a reply that has not ended by then is cut there; None for 256, or half of the model's positions
            where it has fewer than 512.
        temperature: 0 takes the most likely token each time; above, tokens are drawn from the model's probabilities
            sharpened (below 1) or flattened (above 1) by it.
        seed: decides what is drawn.
    """

    max_new_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100)
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True)
class Replies:
    """What was written.

    Attributes:
        texts: (n,) replies.
        finished: (n,) whether the model ended its reply; False where it was cut at `max_new_tokens`.
        cut: (n,) whether the conversation was too long to be read from its beginning.
    """

    texts: list[str]
    finished: np.ndarray
    cut: np.ndarray


def write_replies(predictor: Predictor, contexts: Sequence[str], writing: Writing) -> Replies:
    """Write a reply to each conversation, in their order.

    The weights are held in the number format of the training from here on: casting them for every token would take
    most of the time.

    Args:
        contexts: turns as JSON, as `data.chat` makes them.

    Raises:
        RecipeError: `max_new_tokens` leaves no room for a prompt.
    """
    forward, tokenizer = predictor.forward, predictor.tokenizer
    longest, room = _lengths(predictor, writing)
    encoded = predictor.task.encode(tokenizer, {MESSAGES: contexts}, None, room)
    model = forward.model.to(torch.bfloat16 if forward.precision == "bfloat16" else torch.float32).eval()
    ends = ends_of(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=longest,
        do_sample=writing.temperature > 0,
        temperature=writing.temperature or None,
        top_k=0 if writing.temperature else None,
        pad_token_id=forward.pad_id,
        eos_token_id=ends,
    )
    texts, finished = [""] * len(contexts), np.zeros(len(contexts), dtype=bool)
    torch.manual_seed(writing.seed)
    for rows in by_length(encoded.lengths + longest, BATCH_TOKENS):
        batch = collate(encoded, rows, pad_id=forward.pad_id, left=True, device=forward.device)
        inputs = {"attention_mask": torch.ones_like(batch.inputs["input_ids"]), **batch.inputs}
        with torch.inference_mode():
            written = _written(model, inputs, config).cpu().numpy()
        for row, ids in zip(rows, written, strict=True):
            stops = np.flatnonzero(np.isin(ids, ends))
            finished[row] = len(stops) > 0
            kept = ids[: stops[0]] if len(stops) else ids
            texts[row] = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Replies(texts, finished, encoded.full_lengths > encoded.lengths)


def _written(model: Any, inputs: dict[str, torch.Tensor], config: GenerationConfig) -> torch.Tensor:
    """The ids of new tokens (b, t)."""
    if virtual_tokens(model):  # given embeddings, the model gives back new tokens alone
        ids: torch.Tensor = plain_model(model).generate(**with_prompt(model, inputs), generation_config=config)
        return ids
    ids = model.generate(**inputs, generation_config=config)
    return ids[:, inputs["input_ids"].shape[1] :]


def _lengths(predictor: Predictor, writing: Writing) -> tuple[int, int]:
    """The longest reply, and how many tokens a prompt may have so that it still fits."""
    model = predictor.forward.model
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20
    positions -= virtual_tokens(model)
    longest = writing.max_new_tokens or min(NEW_TOKENS, positions // 2)
    if longest >= positions:
        where = Where(field="max_new_tokens")
        problem = Problem(f"a number from 1 to {positions - 1}", str(longest), "Change it.", where)
        raise RecipeError("The replies cannot have this length.", [problem])
    return longest, positions - longest
