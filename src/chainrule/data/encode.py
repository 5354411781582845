"""Texts to token ids, once, kept flat: one array of ids and the offset of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class States:
    """What the frozen bottom of a model makes of rows.

    Attributes:
        values: (tokens or rows, hidden) float32, or uint16 that holds the bits of bfloat16.
        per_token: one state per token; else the first token's alone, one per row.
    """

    values: np.ndarray
    per_token: bool


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows.

    Attributes:
        ids: (tokens,) int32, all rows one after the other.
        offsets: (n + 1,) int64; row i is ids[offsets[i]:offsets[i + 1]].
        types: (tokens,) uint8 segment numbers, or None where the tokenizer makes none.
        full_lengths: (n,) int64 tokens each row would have without the limit.
        targets: (n,) or (n, labels), or None.
        trained: (tokens,) bool, the tokens that are to be predicted, or None where a row has one target as a whole.
        refused: row position -> why the row could not be encoded; such a row has no tokens.
        states: what a model that starts above its frozen layers reads instead of ids, or None.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    full_lengths: np.ndarray
    targets: np.ndarray | None
    trained: np.ndarray | None = None
    refused: Mapping[int, str] = field(default_factory=dict)
    states: States | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each row as encoded."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Encoded:
        """The rows at these positions, in that order; none of them refused."""
        places = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows]
        chosen = np.concatenate(places) if places else np.zeros(0, np.int64)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.lengths[rows], out=offsets[1:])
        return Encoded(
            ids=self.ids[chosen],
            offsets=offsets,
            types=None if self.types is None else self.types[chosen],
            full_lengths=self.full_lengths[rows],
            targets=None if self.targets is None else self.targets[rows],
            trained=None if self.trained is None else self.trained[chosen],
        )


def encode(
    tokenizer: Any,
    inputs: Mapping[str, Sequence[str]],
    targets: np.ndarray | None,
    max_length: int,
) -> Encoded:
    """Tokenise one text, or a pair of texts, per row.

    Args:
        tokenizer: a transformers tokenizer.
        inputs: one or two columns of texts, in the order the model reads them.
        max_length: rows longer than this many tokens are cut; `full_lengths` tells which.
    """
    columns = list(inputs.values())
    rows = len(columns[0])
    ids, types, lengths, full = [], [], [], []
    for start in range(0, rows, CHUNK_ROWS):
        texts = [list(column[start : start + CHUNK_ROWS]) for column in columns]
        batch = tokenizer(*texts, add_special_tokens=True, return_attention_mask=False, verbose=False)
        full += [len(row) for row in batch["input_ids"]]
        if max(full[start:]) > max_length:
            batch = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths += [len(row) for row in batch["input_ids"]]
        ids.append(_flat(batch["input_ids"], np.int32))
        if "token_type_ids" in batch:
            types.append(_flat(batch["token_type_ids"], np.uint8))
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Encoded(
        ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
        offsets=offsets,
        types=np.concatenate(types) if types else None,
        full_lengths=np.asarray(full, dtype=np.int64),
        targets=targets,
    )


def _flat(rows: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.fromiter((token for row in rows for token in row), dtype=dtype, count=sum(map(len, rows)))
