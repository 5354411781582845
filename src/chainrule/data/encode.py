"""Texts to token ids, once, kept flat: one array of ids, and the offset of each sequence that the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from chainrule.core.spans import together
from chainrule.system.spill import Spill

CHUNK_ROWS = 4096
OF_TOKENS = {"ids": np.int32, "types": np.uint8, "trained": np.bool_, "classes": np.int32, "places": np.int32}


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
class Pixels:
    """Images as bytes.

    Attributes:
        values: (n, channels, height, width) uint8.
        scale, shift: (channels,) float32; a model reads value · scale + shift.
    """

    values: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    def take(self, rows: np.ndarray) -> Pixels:
        """Those of the rows at these positions, in that order."""
        return replace(self, values=self.values[rows])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """What a model reads of these rows: (b, channels, height, width) float32."""
        read: np.ndarray = self.values[rows] * self.scale[:, None, None] + self.shift[:, None, None]
        return read


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows. A row is one sequence of tokens, or several that the model reads side by side, such as windows.

    Attributes:
        ids: (tokens,) int32, all sequences one after the other.
        offsets: (s + 1,) int64; sequence i is ids[offsets[i]:offsets[i + 1]].
        types: (tokens,) uint8 segment numbers, or None where the tokenizer makes none.
        full_lengths: (n,) int64 tokens of each row without the limit: of its longest sequence, or of all its windows.
        targets: (n,), (n, labels), `Spans`, `Answers` or `Lists` of n rows, or None.
        trained: (tokens,) bool, the tokens of which something is learned, or None where a row has one target as a
            whole.
        classes: (tokens,) int32, what is learned of each of these; None where it is the token itself.
        places: (2 · tokens,) int32, where in the row's text begins and ends what is said of a token; None if nowhere.
        refused: row position -> why the row could not be encoded; such a row has no tokens.
        pixels: what a model of images reads instead of ids, or None.
        states: what a model that starts above its frozen layers reads instead of ids, or None.
        references: (n, …) float32, what the model before step one says of each row, where a loss asks it; or None.
        sequences: (n + 1,) int64; row i has the sequences from sequences[i] to sequences[i + 1]. None for one each.
        shared: (m,) int64, where rows have sequences in common: which of all sequences each of those is that
            `sequences` counts. None where no two rows have the same one.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    full_lengths: np.ndarray
    targets: Any
    trained: np.ndarray | None = None
    classes: np.ndarray | None = None
    places: np.ndarray | None = None
    refused: Mapping[int, str] = field(default_factory=dict)
    pixels: Pixels | None = None
    states: States | None = None
    sequences: np.ndarray | None = None
    references: np.ndarray | None = None
    shared: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets if self.sequences is None else self.sequences) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n,) positions that the model computes for each row: its longest sequence, as often as it has any.

        Of an image the rows of its pixels.
        """
        if self.pixels is not None:
            return self.full_lengths
        tokens = np.diff(self.offsets)
        if self.sequences is None or not len(self):
            return tokens
        longest: np.ndarray = np.maximum.reduceat(self.by_row(tokens), self.sequences[:-1])
        return longest * np.diff(self.sequences)

    @property
    def cut(self) -> np.ndarray:
        """(n,) bool, the rows that are longer than is read of them; where these have windows, nothing is cut off."""
        read = self.lengths
        if self.shared is not None and self.sequences is not None:  # full lengths are those of single sequences
            read = read // np.diff(self.sequences)
        found: np.ndarray = self.full_lengths > read
        return found

    @property
    def learned(self) -> np.ndarray | None:
        """(n,) tokens of each row of which something is learned; None where a row has one target as a whole."""
        if self.trained is None:
            return None
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.trained)])[self.offsets]
        counts: np.ndarray = np.diff(ends if self.sequences is None else ends[self.sequences])
        return counts

    def by_row(self, values: np.ndarray) -> np.ndarray:
        """Values of all sequences (s, …) as those of the sequences of each row, row after row."""
        return values if self.shared is None else values[self.shared]

    def sequences_of(self, rows: np.ndarray) -> np.ndarray:
        """The positions of all sequences of these rows, row after row."""
        if self.sequences is None:
            return rows
        counts = np.diff(self.sequences)[rows]
        ends = np.cumsum(counts)
        shifts: np.ndarray = np.repeat(self.sequences[:-1][rows] - (ends - counts), counts)
        places = shifts + np.arange(len(shifts))
        return places if self.shared is None else self.shared[places]

    def different(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The positions of the sequences of these rows as a batch has them, each once.

        Also which of these each of the rows' sequences is, row after row; None where rows have none in common.
        """
        taken = self.sequences_of(rows)
        if self.shared is None:
            return taken, None
        once, places = np.unique(taken, return_inverse=True)
        return once, places

    def take(self, rows: np.ndarray) -> Encoded:
        """The rows at these positions, in that order; none of them refused."""
        return joined(self._few(rows[start : start + CHUNK_ROWS]) for start in range(0, max(len(rows), 1), CHUNK_ROWS))

    def _few(self, rows: np.ndarray) -> Encoded:
        taken, shared = self.different(rows)
        offsets = offsets_of(np.diff(self.offsets)[taken])
        chosen = np.arange(offsets[-1]) + np.repeat(self.offsets[taken] - offsets[:-1], np.diff(offsets))
        return Encoded(
            ids=self.ids[chosen],
            offsets=offsets,
            types=None if self.types is None else self.types[chosen],
            full_lengths=self.full_lengths[rows],
            targets=None if self.targets is None else self.targets[rows],
            trained=None if self.trained is None else self.trained[chosen],
            classes=None if self.classes is None else self.classes[chosen],
            places=None if self.places is None else self.places.reshape(-1, 2)[chosen].ravel(),
            sequences=None if self.sequences is None else offsets_of(np.diff(self.sequences)[rows]),
            references=None if self.references is None else self.references[rows],
            pixels=None if self.pixels is None else self.pixels.take(rows),
            shared=shared,
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
    long = [row for row, length in enumerate(full) if length > max_length]
    if long:
        few = [[column[row] for row in long] for column in texts]
        cut = tokenizer(*few, truncation=True, max_length=max_length, return_attention_mask=False)
        for name, values in cut.items():
            for row, value in zip(long, values, strict=True):
                batch[name][row] = value
    return Encoded(
        ids=_flat(batch["input_ids"], np.int32),
        offsets=offsets_of([len(row) for row in batch["input_ids"]]),
        types=segments_of(batch),
        full_lengths=np.array(full, dtype=np.int64),
        targets=None,
    )


def joined(pieces: Iterable[Encoded]) -> Encoded:
    """The rows of all pieces in order, each piece being asked for when the tokens of the one before are stored.

    The tokens of many rows lie in a memory-mapped file.
    """
    lengths, full, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], list[np.ndarray]()
    targets: list[Any] = []
    references: list[np.ndarray] = []
    pixels: list[Pixels] = []
    shared: list[np.ndarray] = []
    refused: dict[int, str] = {}
    rows = sequences = 0
    with ExitStack() as stack:
        spills: dict[str, Spill] = {}
        for piece in pieces:
            for name in OF_TOKENS:
                values: np.ndarray | None = getattr(piece, name)
                if values is not None:
                    if name not in spills:
                        spills[name] = stack.enter_context(Spill())
                    spills[name].write(values.tobytes())
            lengths.append(np.diff(piece.offsets))
            counts += [] if piece.sequences is None else [np.diff(piece.sequences)]
            full.append(piece.full_lengths)
            targets += [] if piece.targets is None else [piece.targets]
            references += [] if piece.references is None else [piece.references]
            pixels += [] if piece.pixels is None else [piece.pixels]
            shared += [] if piece.shared is None else [piece.shared + sequences]
            sequences += len(piece.offsets) - 1
            refused |= {rows + row: why for row, why in piece.refused.items()}
            rows += len(piece)
        tokens: dict[str, Any] = {name: np.frombuffer(spill.read(), OF_TOKENS[name]) for name, spill in spills.items()}
    return Encoded(
        ids=tokens.pop("ids", np.zeros(0, np.int32)),
        offsets=offsets_of(np.concatenate(lengths)),
        types=tokens.pop("types", None),
        full_lengths=np.concatenate(full),
        targets=together(targets) if targets else None,
        refused=refused,
        sequences=offsets_of(np.concatenate(counts)) if counts else None,
        references=np.concatenate(references) if references else None,
        pixels=replace(pixels[0], values=np.concatenate([each.values for each in pixels])) if pixels else None,
        shared=np.concatenate(shared) if shared else None,
        **tokens,
    )


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n + 1,) int64: where rows of these lengths begin and end, one after the other."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def segments_of(batch: Any) -> np.ndarray | None:
    """(tokens,) uint8: the segment numbers of a tokenizer's batch, or None where it makes none."""
    return _flat(batch["token_type_ids"], np.uint8) if "token_type_ids" in batch else None


def _flat(rows: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype, count=sum(map(len, rows)))
