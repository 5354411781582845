"""Sources as prompts of a language model, and targets as its replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.data.chat import MESSAGES, prompt_of
from chainrule.data.encode import Encoded, joined
from chainrule.data.written import references_of
from chainrule.tasks import conversation

CHUNK_ROWS = 1024
KEPT = 4  # no less than this part of the tokens is left to a source


@dataclass(frozen=True)
class Prompted:
    """Tokenises a source as the user's turn, and its first target as the reply, which is learned.

    Where the two are longer than the model reads, the source loses its end, down to a quarter of the limit; only then
    does the target.

    Attributes:
        instruction: stands before each source, with a blank line between them.
    """

    instruction: str | None

    def __call__(self, tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
        """Tokenise rows.

        Args:
            inputs: one column of sources.
            targets: (n,) lists of references as JSON; None to write them.

        Returns:
            What `conversation.encode` gives; `full_lengths` are those of whole sources.
        """
        (sources,) = inputs.values()

        def pieces() -> Iterator[Encoded]:
            for start in range(0, len(sources), CHUNK_ROWS):
                few = slice(start, start + CHUNK_ROWS)
                right = None if targets is None else [references_of(target)[0] for target in targets[few]]
                yield self._encode_few(tokenizer, list(sources[few]), right, max_length)

        return joined(pieces())

    def _encode_few(self, tokenizer: Any, sources: list[str], replies: list[str] | None, max_length: int) -> Encoded:
        whole = self._conversations(tokenizer, sources, replies, max_length)
        over = whole.full_lengths - max_length
        long = np.flatnonzero(over > 0)
        if not len(long):
            return whole
        batch = tokenizer(
            [sources[row] for row in long], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for row, places in zip(long.tolist(), batch["offset_mapping"], strict=True):
            kept = max(len(places) - int(over[row]) - 1, max_length // KEPT)  # one less: words may be cut in two
            sources[row] = sources[row][: places[min(kept, len(places)) - 1][1]]
        return replace(self._conversations(tokenizer, sources, replies, max_length), full_lengths=whole.full_lengths)

    def _conversations(
        self, tokenizer: Any, sources: Sequence[str], replies: Sequence[str] | None, max_length: int
    ) -> Encoded:
        asked = sources if self.instruction is None else [f"{self.instruction}\n\n{text}" for text in sources]
        contexts = [prompt_of(text) for text in asked]
        return conversation.encode(tokenizer, {MESSAGES: contexts}, replies, max_length)
