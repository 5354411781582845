"""Marked pieces of rows, such as the entities of sentences: any number a row, kept flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Span = tuple[int, int, int]  # start, end (exclusive), kind
_PARTS = ("offsets", "bounds", "scores")


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans of n rows, k in all; row i has those from offsets[i] to offsets[i + 1].

    Attributes:
        offsets: (n + 1,) int64.
        bounds: (k, 3) int32: the first character, the one after the last, and the kind's index.
        scores: (k,) float32, how sure each is; 1 where it is given and not predicted.
    """

    offsets: np.ndarray
    bounds: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[Span]], scores: np.ndarray | None = None) -> Spans:
        """The spans of each row, in the order they are given.

        Args:
            scores: of all spans, row after row.
        """
        flat: list[Span] = []
        ends = [0]
        for row in rows:
            flat.extend(row)
            ends.append(len(flat))
        bounds = np.array(flat, dtype=np.int32).reshape(-1, 3)
        known = np.ones(len(flat), np.float32) if scores is None else np.asarray(scores, np.float32)
        return cls(np.array(ends, dtype=np.int64), bounds, known)

    @classmethod
    def joined(cls, parts: Sequence[Spans]) -> Spans:
        """The rows of all parts, one after the other."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        bounds, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("bounds", "scores"))
        return cls(_offsets(counts), bounds, scores)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: np.ndarray) -> Spans:
        """The rows at these positions, in that order."""
        counts = np.diff(self.offsets)[rows]
        offsets = _offsets(counts)
        chosen = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        return Spans(offsets, self.bounds[chosen], self.scores[chosen])

    @property
    def rows(self) -> np.ndarray:
        """(k,) int64: the row of each span."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def each(self) -> Iterator[list[Span]]:
        """The spans of each row."""
        for start, end in pairwise(self.offsets.tolist()):
            yield [(first, last, kind) for first, last, kind in self.bounds[start:end].tolist()]


def together(parts: Sequence[np.ndarray | Spans]) -> np.ndarray | Spans:
    """The rows of all parts of the same kind, one after the other."""
    spans = [part for part in parts if isinstance(part, Spans)]
    return Spans.joined(spans) if spans else np.concatenate([part for part in parts if not isinstance(part, Spans)])


def as_arrays(name: str, rows: np.ndarray | Spans) -> dict[str, np.ndarray]:
    """Rows as named arrays, to be stored; `from_arrays` reads them."""
    if not isinstance(rows, Spans):
        return {name: np.ascontiguousarray(rows)}
    return {f"{name}.{part}": getattr(rows, part) for part in _PARTS}


def from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """The opposite of `as_arrays`.

    Raises:
        KeyError: there are none of that name.
    """
    return arrays[name] if name in arrays else Spans(*(arrays[f"{name}.{part}"] for part in _PARTS))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
