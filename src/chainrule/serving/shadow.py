"""Rows that another model is asked beside the one that answers; its answers are counted and given to nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from chainrule.errors import ChainruleError
from chainrule.serving.jobs import RowsJob
from chainrule.serving.limits import Limits
from chainrule.serving.metrics import Metrics
from chainrule.serving.served import Served
from chainrule.serving.watching import SHADOW, Kept, Watching
from chainrule.serving.worker import Worker

SHARE = 0.5  # of the queue that shadows leave to requests
PATIENCE = 10  # times as long as a request may take


class Shadows:
    """Asks shadows once the request has its answer; while the queue is half full they are not asked."""

    def __init__(self, worker: Worker, limits: Limits, metrics: Metrics) -> None:
        self._worker, self._limits, self._metrics = worker, limits, metrics
        self._asked: set[asyncio.Task[None]] = set()

    def ask(self, served: Served, kept: Kept, inputs: Mapping[str, Sequence[str]], watching: Watching | None) -> None:
        """Ask a shadow the rows of a request.

        Args:
            kept: the request, with what was answered.
            inputs: of the rows, by field.
        """
        if self._worker.waiting("predict") + len(kept.ids) > SHARE * self._limits.queue:
            self._metrics.shadows.labels(served.name, "skipped").inc(len(kept.ids))
            return
        task = asyncio.ensure_future(self._compare(served, kept, inputs, watching))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At the end what was asked is waited for."""
        yield
        if self._asked:
            await asyncio.wait(self._asked, timeout=self._limits.timeout)

    async def _compare(
        self, served: Served, kept: Kept, inputs: Mapping[str, Sequence[str]], watching: Watching | None
    ) -> None:
        answer = asyncio.get_running_loop().create_future()
        deadline = time.monotonic() + PATIENCE * self._limits.timeout
        job = RowsJob(served, len(kept.ids), deadline, answer, inputs=dict(inputs))
        try:
            self._worker.submit(job)
            rows: list[dict[str, Any]] = await answer
        except ChainruleError:
            self._metrics.shadows.labels(served.name, "failed").inc(len(kept.ids))
            return
        same = sum(_said(row) == _said(other) for row, other in zip(rows, kept.answers, strict=True))
        self._metrics.shadows.labels(served.name, "same").inc(same)
        self._metrics.shadows.labels(served.name, "other").inc(len(rows) - same)
        if watching is not None:
            ids = [name + SHADOW for name in kept.ids]
            await watching.keep(Kept(job.served, ids, rows, kept.inputs, job, agrees=same))


def _said(row: Mapping[str, Any]) -> Any:
    """What is compared of an answer: the label, the answer, or the entities without their scores."""
    if "entities" in row:
        return [(one["label"], one["start"], one["end"]) for one in row["entities"]]
    return next((row[name] for name in ("label", "answer") if name in row), row.get("score"))
