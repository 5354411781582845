"""Predictions on their way into a monitor's file: those of requests at hand are written together.

A prediction is in the file before its client has the answer, so that feedback finds it, also after a kill.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from chainrule.data.encode import Encoded
from chainrule.errors import UserError
from chainrule.monitoring.accuracy import UnknownIdError, take_feedback
from chainrule.monitoring.features import Features
from chainrule.monitoring.monitor import Batch, Monitor
from chainrule.monitoring.reference import Said
from chainrule.monitoring.said import said_of, said_of_texts
from chainrule.monitoring.stream import kept_row, row_segments
from chainrule.serving.jobs import RowsJob
from chainrule.serving.metrics import Metrics
from chainrule.serving.refusal import RefusedError
from chainrule.serving.requests import Feedback
from chainrule.serving.served import Served

TICK = 2.0  # seconds between looks at the clock
SHADOW = "~shadow"  # after the id of a prediction: what the shadow said of the same row


@dataclass(frozen=True)
class Kept:
    """Rows of one request with what was said of them.

    Attributes:
        answers: of each row, as the client gets them; of a text `finished` and `tokens`.
        inputs: of each row, as the client sent it.
        job: what was read; None where texts were written.
        prompt: what was read before a text; None of several.
        agrees: how many of the rows a shadow says the same of; None of what is no shadow.
    """

    served: Served
    ids: Sequence[str]
    answers: Sequence[Mapping[str, Any]]
    inputs: Sequence[Any]
    job: RowsJob | None = None
    prompt: Encoded | None = None
    agrees: int | None = None


@dataclass
class Watching:
    """A server's monitor; writes in a thread, so that answers of other requests go on.

    Attributes:
        say: told what goes wrong.
    """

    monitor: Monitor
    metrics: Metrics
    say: Callable[[str], None]
    _pending: list[tuple[Kept, asyncio.Future[None]]] = field(default_factory=list)
    _writer: asyncio.Task[None] | None = None
    _failed: bool = False

    async def keep(self, kept: Kept) -> None:
        """Write rows; returns once they are in the file, or could not be written, which no answer depends on."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((kept, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write())
        await done

    async def feedback(self, body: Feedback) -> dict[str, Any]:
        """What a prediction should have been; it counts for the shadow's prediction of the same row too.

        Raises:
            RefusedError: there is no such prediction.
            UserError: the model has no such label.
        """
        given = [body.label] if isinstance(body.label, str) else body.label
        return await run_in_threadpool(self._take, body.id, given)

    def _take(self, name: str, given: Sequence[str]) -> dict[str, Any]:
        labels = {model: watched.labels for model, watched in self.monitor.models.items()}
        store, now = self.monitor.store, self.monitor.now()
        try:
            found = take_feedback(store, labels, name, given, now)
        except UnknownIdError as error:
            told = " ".join([error.message, *(problem.todo for problem in error.problems)])
            raise RefusedError(404, told, code="prediction_not_found", param="id") from None
        try:
            take_feedback(store, labels, name + SHADOW, given, now)
        except UserError:  # there is no shadow, or it has other labels
            return found
        return found

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside, the clock is looked at; at the end what is pending is written."""
        ticking = asyncio.ensure_future(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            if self._writer is not None:
                await asyncio.wait({self._writer})
            await run_in_threadpool(self._safely, self.monitor.tick)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            await run_in_threadpool(self._safely, self.monitor.tick)

    async def _write(self) -> None:
        while self._pending:
            taken, self._pending = self._pending, []
            await run_in_threadpool(self._safely, self._record, [kept for kept, _ in taken])
            for _, done in taken:
                if not done.done():
                    done.set_result(None)

    def _record(self, all_kept: Sequence[Kept]) -> None:
        try:
            self.monitor.record_all([self._batch(kept) for kept in all_kept])
            for kept in all_kept:
                if kept.agrees is not None:
                    self.monitor.count_shadow(kept.served.name, kept.agrees, len(kept.ids) - kept.agrees)
        except Exception:
            self.metrics.unwatched.inc(sum(len(kept.ids) for kept in all_kept))
            raise

    def _measured(self, kept: Kept) -> tuple[Said, Features | None]:
        job, gauge = kept.job, self.monitor.models[kept.served.name].gauge
        if job is None:
            features = None if gauge is None or kept.prompt is None else gauge.measure(kept.prompt)
            return said_of_texts(kept.answers), features
        said = said_of(kept.served.kind, kept.served.predictor.artifact.manifest.labels, job.predictions())
        if gauge is None or job.encoded is None:
            return said, None
        return said, gauge.measure(job.encoded, job.first, job.rows)

    def _safely(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Do something with the file; that it cannot be done is told once and counted, and stops nobody."""
        try:
            function(*arguments)
            self._failed = False
        except Exception as error:
            if not self._failed:
                why = f"{type(error).__name__}: {error}"[:300]
                self.say(f"warning: the monitor's file cannot be written; predictions go unwatched ({why}).")
            self._failed = True

    def _batch(self, kept: Kept) -> Batch:
        served, settings = kept.served, self.monitor.settings
        said, features = self._measured(kept)
        segments = [
            row_segments(labels, answer.get("entities"), row, settings.segment)
            for labels, answer, row in zip(said.labels, kept.answers, kept.inputs, strict=True)
        ]
        texts = None
        if settings.keep_text is not None:
            texts = [kept_row(row, served.predictor.artifact) for row in kept.inputs]
        return Batch(served.name, kept.ids, said, features, segments, texts)
