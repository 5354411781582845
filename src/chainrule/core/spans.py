"""Marked pieces of rows, such as the entities of sentences or the answers in contexts: any number a row, kept flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from chainrule.core.lists import PARTS as LIST_PARTS
from chainrule.core.lists import Lists, pick, starts_of

Span = tuple[int, int, int]  # start, end (exclusive), kind
# Chinese and Japanese characters, each a word by itself, as the inside of a regular expression's brackets
ALONE = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_PARTS = ("offsets", "bounds", "scores")


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans of n rows, k in all; row i has those from offsets[i] to offsets[i + 1].

    Attributes:
        offsets: (n + 1,) int64.
        bounds: (k, 3) int32: the first character, the one after the last, and the kind's index.
        scores: (k,) float32, how sure each is; 1 where it is given and not predicted. Of an answer, by how much it
            beats "no answer": what is not above 0 is none.
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
        return cls(starts_of(counts), bounds, scores)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: np.ndarray) -> Spans:
        """The rows at these positions, in that order."""
        offsets, chosen = pick(self.offsets, rows)
        return Spans(offsets, self.bounds[chosen], self.scores[chosen])

    @property
    def rows(self) -> np.ndarray:
        """(k,) int64: the row of each span."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def each(self) -> Iterator[list[Span]]:
        """The spans of each row."""
        for start, end in pairwise(self.offsets.tolist()):
            yield [(first, last, kind) for first, last, kind in self.bounds[start:end].tolist()]


@dataclass(frozen=True, eq=False)
class Answers:
    """The right answers of n rows, as pieces of the rows' contexts.

    Attributes:
        contexts: (n,) texts, chosen from by an array of positions.
        spans: any number a row, all of kind 0 and each as good as the first; none where there is no answer.
    """

    contexts: Any
    spans: Spans

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """The rows of all parts, one after the other."""
        contexts = type(parts[0].contexts).of(chain.from_iterable(part.contexts for part in parts))
        return cls(contexts, Spans.joined([part.spans for part in parts]))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, rows: np.ndarray) -> Answers:
        """The rows at these positions, in that order."""
        return Answers(self.contexts[rows], self.spans[rows])

    @property
    def answered(self) -> np.ndarray:
        """(n,) bool: whether there is an answer."""
        found: np.ndarray = np.diff(self.spans.offsets) > 0
        return found

    def texts(self, spans: Spans) -> Iterator[list[str]]:
        """What the contexts have at the spans of each row, be they these or others; not at those that are no answer."""
        scores = spans.scores.tolist()
        bounds = zip(self.contexts, spans.each(), pairwise(spans.offsets.tolist()), strict=True)
        for context, row, (first, end) in bounds:
            given = zip(row, scores[first:end], strict=True)
            yield [context[start:stop] for (start, stop, _), score in given if score > 0]


def together(parts: Sequence[Any]) -> Any:
    """The rows of all parts of the same kind (arrays, `Spans`, `Answers` or `Lists`), one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return first.joined(parts) if isinstance(first, Spans | Answers | Lists) else np.concatenate(parts)


def as_arrays(name: str, rows: np.ndarray | Spans | Answers | Lists) -> dict[str, np.ndarray]:
    """Rows as named arrays, to be stored; `from_arrays` reads them. Contexts are left out."""
    if isinstance(rows, Answers):
        return as_arrays(name, rows.spans)
    if isinstance(rows, Lists):
        found = {part: getattr(rows, part) for part in LIST_PARTS}
        return {f"{name}.{part}": array for part, array in found.items() if array is not None}
    if not isinstance(rows, Spans):
        return {name: np.ascontiguousarray(rows)}
    return {f"{name}.{part}": getattr(rows, part) for part in _PARTS}


def from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """The opposite of `as_arrays`.

    Raises:
        KeyError: there are none of that name.
    """
    if f"{name}.numbers" in arrays:
        return Lists(*(arrays.get(f"{name}.{part}") for part in LIST_PARTS))  # type: ignore[arg-type]
    return arrays[name] if name in arrays else Spans(*(arrays[f"{name}.{part}"] for part in _PARTS))
