"""Texts to token ids, once, kept flat: one array of ids and the offset of each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from chainrule.system.spill import Spill

CHUNK_ROWS = 4096
_OF_TOKENS = {"ids": np.int32, "types": np.uint8, "trained": np.bool_}


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
        return joined(self._few(rows[start : start + CHUNK_ROWS]) for start in range(0, max(len(rows), 1), CHUNK_ROWS))

    def _few(self, rows: np.ndarray) -> Encoded:
        offsets = offsets_of(self.lengths[rows])
        chosen = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], np.diff(offsets))
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

    def pieces() -> Iterator[Encoded]:
        for start in range(0, len(columns[0]), CHUNK_ROWS):
            texts = [list(column[start : start + CHUNK_ROWS]) for column in columns]
            yield _encode_few(tokenizer, texts, max_length)

    return replace(joined(pieces()), targets=targets)


def _encode_few(tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> Encoded:
    batch = tokenizer(*texts, add_special_tokens=True, return_attention_mask=False, verbose=False)
    full = [len(row) for row in batch["input_ids"]]
    if max(full) > max_length:
        batch = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    return Encoded(
        ids=_flat(batch["input_ids"], np.int32),
        offsets=offsets_of([len(row) for row in batch["input_ids"]]),
        types=_flat(batch["token_type_ids"], np.uint8) if "token_type_ids" in batch else None,
        full_lengths=np.array(full, dtype=np.int64),
        targets=None,
    )


def joined(pieces: Iterable[Encoded]) -> Encoded:
    """The rows of all pieces in order, each piece being asked for when the tokens of the one before are stored.

    The tokens of many rows lie in a memory-mapped file.
    """
    lengths, full = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    targets: list[np.ndarray] = []
    refused: dict[int, str] = {}
    rows = 0
    with ExitStack() as stack:
        spills: dict[str, Spill] = {}
        for piece in pieces:
            for name in _OF_TOKENS:
                values: np.ndarray | None = getattr(piece, name)
                if values is not None:
                    if name not in spills:
                        spills[name] = stack.enter_context(Spill())
                    spills[name].write(values.tobytes())
            lengths.append(piece.lengths)
            full.append(piece.full_lengths)
            targets += [] if piece.targets is None else [piece.targets]
            refused |= {rows + row: why for row, why in piece.refused.items()}
            rows += len(piece)
        tokens: dict[str, np.ndarray] = {
            name: np.frombuffer(spill.read(), _OF_TOKENS[name]) for name, spill in spills.items()
        }
    return Encoded(
        ids=tokens.get("ids", np.zeros(0, np.int32)),
        offsets=offsets_of(np.concatenate(lengths)),
        types=tokens.get("types"),
        full_lengths=np.concatenate(full),
        targets=np.concatenate(targets) if targets else None,
        trained=tokens.get("trained"),
        refused=refused,
    )


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n + 1,) int64: where rows of these lengths begin and end, one after the other."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _flat(rows: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype, count=sum(map(len, rows)))
