"""What requests ask of the models, as the thread of the models sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.core.task import Predictions
from chainrule.data.encode import Encoded
from chainrule.inference.predict import Predictor
from chainrule.serving.served import Served

SHORT = 32  # rows of up to so many tokens go into one batch, whatever their lengths


@dataclass(eq=False)
class Job:
    """Work for one request.

    Attributes:
        served: what answers it; the version that has taken its place meanwhile, where it was not in memory.
        rows: how many places it takes in the queue.
        deadline: of `time.monotonic`; nobody waits for an answer after it.
        answer: what the request waits for.
        given_up: whether nobody waits any more.
    """

    served: Served
    rows: int
    deadline: float
    answer: asyncio.Future[Any]
    given_up: bool = False

    def dead(self) -> bool:
        """Whether nobody waits for an answer."""
        return self.given_up or time.monotonic() > self.deadline


@dataclass(eq=False)
class WritingJob(Job):
    """Texts to be written, one job at a time.

    Attributes:
        work: does it; is given the model and what to ask whether to go on, and gives the answer.
    """

    work: Callable[[Predictor, Callable[[], bool]], Any] = field(kw_only=True)


@dataclass(eq=False)
class RowsJob(Job):
    """Rows to be predicted, in whatever batches.

    Attributes:
        inputs: by field.
        encoded: these rows and perhaps others; None until they are tokenised.
        first: where in `encoded` these rows begin.
        cut: (rows,) which the model reads in part.
        pending: rows that have not been read yet, the longest first, and their lengths.
        parts: rows with what was said of them.
    """

    inputs: dict[str, Sequence[str]] = field(kw_only=True)
    encoded: Encoded | None = None
    first: int = 0
    cut: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    parts: list[tuple[np.ndarray, Predictions]] = field(default_factory=list)

    def begin(self, encoded: Encoded, first: int, cut: np.ndarray) -> None:
        """The rows are tokenised."""
        lengths = encoded.lengths[first : first + self.rows]
        self.encoded, self.first, self.cut = encoded, first, cut[first : first + self.rows]
        self.pending = np.argsort(-lengths, kind="stable")
        self.lengths = lengths[self.pending]

    def take(self, width: int, room: int) -> np.ndarray:
        """At most `room` of the pending rows that go well with rows of `width` tokens; these are pending no more."""
        shortest = 0 if width <= SHORT else width // 2
        start = int(np.searchsorted(-self.lengths, -width, side="left"))
        stop = int(np.searchsorted(-self.lengths, -shortest, side="right"))
        chosen = slice(start, min(stop, start + room))
        rows: np.ndarray = self.pending[chosen]
        self.pending = np.delete(self.pending, chosen)
        self.lengths = np.delete(self.lengths, chosen)
        return rows

    def predictions(self) -> Predictions:
        """What was said of all rows, in their order."""
        order = np.argsort(np.concatenate([rows for rows, _ in self.parts]))
        return Predictions.joined([part for _, part in self.parts]).take(order)
