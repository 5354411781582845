"""Lists of candidates, such as the documents of a query: any number a row, kept flat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

PARTS = ("offsets", "numbers", "items", "cold")
NEW_ITEM, NEW_USER = 1, 2  # added up in `cold`


@dataclass(frozen=True, eq=False)
class Lists:
    """The candidates of n rows, k in all; row i has those from offsets[i] to offsets[i + 1].

    Attributes:
        offsets: (n + 1,) int64.
        numbers: (k,) float32: how relevant each candidate is, from 0 on; or the score it was given.
        items: (k,) int32: which item it is, so that the same one is known in other lists; None of scores.
        cold: (k,) uint8: NEW_ITEM where training rows lack the item, NEW_USER where they lack the user; None of scores.
    """

    offsets: np.ndarray
    numbers: np.ndarray
    items: np.ndarray | None = None
    cold: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Lists]) -> Lists:
        """The rows of all parts, one after the other."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        numbers, *others = ([getattr(part, name) for part in parts] for name in PARTS[1:])
        items, cold = (None if any(a is None for a in arrays) else np.concatenate(arrays) for arrays in others)
        return cls(starts_of(counts), np.concatenate(numbers), items, cold)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: np.ndarray) -> Lists:
        """The rows at these positions, in that order."""
        offsets, chosen = pick(self.offsets, rows)
        items, cold = (None if array is None else array[chosen] for array in (self.items, self.cold))
        return Lists(offsets, self.numbers[chosen], items, cold)

    @property
    def rows(self) -> np.ndarray:
        """(k,) int64: the row of each candidate."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def each(self) -> Iterator[np.ndarray]:
        """The numbers of each row."""
        for start, end in pairwise(self.offsets.tolist()):
            yield self.numbers[start:end]

    def scored(self, numbers: np.ndarray) -> Lists:
        """The same lists with a score for each candidate."""
        return replace(self, numbers=np.asarray(numbers, np.float32), items=None, cold=None)

    def padded(self, filling: float) -> np.ndarray:
        """(n, longest list) float32 of the numbers, each row filled up at its end."""
        counts = np.diff(self.offsets)
        places = np.arange(counts.max(initial=0)) < counts[:, None]
        found = np.full(places.shape, filling, np.float32)
        found[places] = self.numbers
        return found


def starts_of(counts: np.ndarray) -> np.ndarray:
    """(n + 1,) int64: where rows with so many things each begin and end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def pick(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The offsets of the rows at these positions alone, and the positions of all that they have."""
    counts = np.diff(offsets)[rows]
    found = starts_of(counts)
    return found, np.arange(found[-1]) + np.repeat(offsets[:-1][rows] - found[:-1], counts)
