"""One text, written a token at a time: told as it grows, and ended when somebody says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from chainrule.core.task import Task
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded
from chainrule.errors import DataError, Problem
from chainrule.inference.generate import Writing, ends_in, generated, held, lengths_of, settings_of
from chainrule.inference.predict import Forward

Finish = Literal["stop", "length", "halted"]


@dataclass(frozen=True)
class Reply:
    """What was written.

    Attributes:
        text: all of it.
        tokens: how many it has, without the one that ends it.
        prompt: what was read before, one row.
        finish: "stop" where the model ended it or a stop text was met, "length" at the limit of tokens, "halted" where
            it was asked to.
    """

    text: str
    tokens: int
    prompt: Encoded
    finish: Finish


@dataclass(frozen=True)
class Prompt:
    """What is read before a text is written.

    Attributes:
        encoded: one row.
        longest: the most tokens that are written.
    """

    encoded: Encoded
    longest: int


def read_prompt(
    forward: Forward, tokenizer: Any, task: Task, inputs: Mapping[str, Sequence[str]], writing: Writing
) -> Prompt:
    """Tokenise a prompt of one row.

    Raises:
        DataError: it is longer than the model reads before a text of `max_new_tokens`; nothing is cut.
        RecipeError: `max_new_tokens` leaves no room for a prompt.
    """
    longest, room = lengths_of(forward.model, writing)
    encoded = task.encode(tokenizer, inputs, None, room)
    if encoded.refused:
        problem = Problem("a conversation that the chat template renders", encoded.refused[0], "Correct the messages.")
        raise DataError("The conversation cannot be rendered.", [problem])
    full = int(encoded.full_lengths[0])
    if not full:
        problem = Problem("a text that the tokenizer finds something in", "none", "Write some words.")
        raise DataError("The prompt has no tokens.", [problem])
    if full > room:
        todo = "Shorten the messages, or ask for fewer tokens."
        problem = Problem(f"at most {room:,} tokens before {longest:,} new ones", f"{full:,}", todo)
        raise DataError("The prompt is too long for this model.", [problem])
    return Prompt(encoded, longest)


def write_one(
    forward: Forward,
    tokenizer: Any,
    prompt: Prompt,
    writing: Writing,
    *,
    stops: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
    halted: Callable[[], bool] = lambda: False,
) -> Reply:
    """Write one text.

    Args:
        stops: texts of which the first that appears ends the reply, and is left out.
        tell: is given each further piece of the reply, as soon as it is certain.
        halted: asked after each token; when true, nothing more is written.
    """
    model = held(forward)
    ends = ends_in(model, tokenizer)
    config = settings_of(model, writing, prompt.longest, ends, forward.pad_id)
    left = not model.config.is_encoder_decoder
    batch = collate(prompt.encoded, np.array([0]), pad_id=forward.pad_id, left=left, device=forward.device)
    given = {"attention_mask": torch.ones_like(batch.inputs["input_ids"]), **batch.inputs}
    growing = _Growing(tokenizer, frozenset(ends), tuple(stops), tell)
    criteria = StoppingCriteriaList([_Halt(lambda: growing.stopped or halted())])
    torch.manual_seed(writing.seed)
    with torch.inference_mode():
        generated(model, given, config, streamer=growing, stopping_criteria=criteria)
    growing.finish()
    ended = growing.stopped or growing.ended
    finish: Finish = "stop" if ended else "length" if len(growing.ids) >= prompt.longest else "halted"
    return Reply(growing.told, len(growing.ids), prompt.encoded, finish)


class _Halt(StoppingCriteria):  # type: ignore[misc]
    """Ends the writing when asked to."""

    def __init__(self, halted: Callable[[], bool]) -> None:
        self._halted = halted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._halted(), dtype=torch.bool, device=input_ids.device)


@dataclass
class _Growing(BaseStreamer):  # type: ignore[misc]
    """Tokens as they come, told as text as far as later tokens cannot change it.

    Attributes:
        ids: of the text, without the token that ends it.
        told: what has been told of it.
        stopped: whether a stop text was met.
        ended: whether the model ended its text.
    """

    tokenizer: Any
    ends: frozenset[int]
    stops: tuple[str, ...]
    tell: Callable[[str], None]
    ids: list[int] = field(default_factory=list)
    told: str = ""
    stopped: bool = False
    ended: bool = False
    _prompt: bool = True

    def put(self, value: torch.Tensor) -> None:
        """New tokens; the first that are put are the prompt."""
        if self._prompt:
            self._prompt = False
            return
        for token in value.reshape(-1).tolist():
            if token in self.ends:
                self.ended = True
            elif not self.ended:
                self.ids.append(token)
        self._advance(self._text(), last=False)

    def end(self) -> None:
        """All tokens have been put."""

    def finish(self) -> None:
        """Tell what is left."""
        if not self.stopped:
            self._advance(self._text(), last=True)

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True)).strip()

    def _advance(self, text: str, *, last: bool) -> None:
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped = True
            text = text[: min(places)].rstrip()
        elif not last:
            text = text[: self._certain(text)]
        if text.startswith(self.told) and len(text) > len(self.told):
            piece, self.told = text[len(self.told) :], text
            self.tell(piece)

    def _certain(self, text: str) -> int:
        """How much of the text no later token can change, or make a stop text of."""
        end = len(text)
        if not end or not "\u3040" <= text[-1] <= "\u9fff":  # a word of other scripts may go on
            end = max((place for place, letter in enumerate(text) if letter.isspace()), default=0)
        for stop in self.stops:
            for size in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:size]):
                    end = min(end, len(text) - size)
                    break
        return len(text[:end].rstrip())
