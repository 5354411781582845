"""What is measured of a row before a model reads it: its length, its unknown tokens, and a short vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.data.encode import Encoded, offsets_of

SIZE = 16  # numbers of a short vector
SEED = 20_260_101
PIECE = 8_192  # tokens that are projected at a time


@dataclass(frozen=True)
class Features:
    """Of n rows.

    Attributes:
        lengths: (n,) tokens, without the limit of the model.
        unknown: (n,) the share of tokens that the vocabulary does not have; None where it has all.
        vectors: (n, SIZE) float64; None where the model has no table of embeddings.
    """

    lengths: np.ndarray
    unknown: np.ndarray | None = None
    vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Gauge:
    """How rows are measured for one model.

    Attributes:
        unknown: the id of the unknown token, or None.
        table: (vocabulary, SIZE) the model's embeddings of tokens, projected at random; a row's vector is their mean.
            Distances survive such a projection (Johnson and Lindenstrauss, 1984), and no layer of the model is run.
    """

    unknown: int | None
    table: np.ndarray | None

    def measure(self, encoded: Encoded, first: int = 0, rows: int | None = None) -> Features:
        """Measure rows from `first` on."""
        count = len(encoded) - first if rows is None else rows
        lengths = np.asarray(encoded.full_lengths[first : first + count])
        if encoded.pixels is not None or not len(encoded.ids):
            return Features(lengths)
        encoded, first = (encoded, first) if encoded.shared is None else (_apart(encoded, first, count), 0)
        ends = encoded.offsets if encoded.sequences is None else encoded.offsets[encoded.sequences]
        ends = np.asarray(ends[first : first + count + 1])
        ids = encoded.ids[ends[0] : ends[-1]]
        ends = ends - ends[0]
        sizes = np.maximum(np.diff(ends), 1)
        unknown = None if self.unknown is None else _sums((ids == self.unknown).astype(float), ends) / sizes
        vectors = None
        if self.table is not None and (not len(ids) or int(ids.max()) < len(self.table)):
            vectors = _sums(self.table[ids], ends) / sizes[:, None]
        return Features(lengths, unknown, vectors)


def gauge_of(tokenizer: Any, model: Any) -> Gauge:
    """How rows of this model are measured; a model in a graph of another engine has no table."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    layer = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(layer, "weight", None)
    table = None
    if weight is not None and weight.ndim == 2 and weight.is_floating_point():
        chance = torch.from_numpy(np.random.default_rng(SEED).standard_normal((weight.shape[1], SIZE)) / np.sqrt(SIZE))
        pieces = (piece.detach().cpu().double() @ chance for piece in weight.split(PIECE))
        table = torch.cat([*pieces]).numpy()
    return Gauge(None if unknown is None else int(unknown), table)


def _apart(encoded: Encoded, first: int, rows: int) -> Encoded:
    """Rows with sequences in common, each as one that has the tokens of all its own."""
    chosen = np.arange(first, first + rows)
    taken = [encoded.sequences_of(chosen[place : place + 1]) for place in range(rows)]
    parts = [encoded.ids[encoded.offsets[each] : encoded.offsets[each + 1]] for own in taken for each in own.tolist()]
    lengths = [int(np.diff(encoded.offsets)[own].sum()) for own in taken]
    ids = np.concatenate(parts) if parts else encoded.ids[:0]
    return Encoded(ids, offsets_of(lengths), None, encoded.full_lengths[chosen], None)


def _sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of the stretches between ends."""
    whole = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    found: np.ndarray = whole[ends[1:]] - whole[ends[:-1]]
    return found
