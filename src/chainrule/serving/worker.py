"""The one thread that runs the models: rows of all requests at hand go through them together.

A batch is led by the request whose turn it is and filled with rows of others of about the same length, up to a number
of padded tokens. Turns go round, so a request of one row does not wait for all of a request of a thousand.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.core.task import Predictions
from chainrule.data.encode import Encoded, joined
from chainrule.inference.answers import encode_rows, refuse_unreadable, rows_cut
from chainrule.inference.predict import predict_encoded
from chainrule.serving.answers import answers_of
from chainrule.serving.jobs import SHORT, Job, RowsJob, WritingJob
from chainrule.serving.limits import Limits
from chainrule.serving.memory import Memory
from chainrule.serving.metrics import Metrics
from chainrule.serving.refusal import RefusedError, too_late

_Taken = list[tuple[RowsJob, np.ndarray]]


class Worker:
    """Takes jobs from the event loop and settles their answers there."""

    def __init__(self, limits: Limits, metrics: Metrics, memory: Memory) -> None:
        self._limits, self._metrics, self._memory = limits, metrics, memory
        self._memory.changed = self._wake
        self._ready = threading.Condition()
        self._arrived: list[Job] = []
        self._woken = False
        self._turns: list[Job] = []
        self._waiting = {"predict": 0, "write": 0}
        self._crowd = 1  # jobs in the last batch
        self._pace = 0.0  # seconds that a row takes, lately
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what was taken and end the thread."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def waiting(self, queue: str) -> int:
        """Rows in a queue."""
        with self._ready:
            return self._waiting[queue]

    def submit(self, job: Job) -> None:
        """Take a job in.

        Raises:
            RefusedError: too many rows are waiting.
        """
        queue = _queue_of(job)
        room = self._limits.writing_queue if queue == "write" else self._limits.queue
        with self._ready:
            waiting = self._waiting[queue]
            if waiting and waiting + job.rows > room:
                seconds = min(60, max(1, math.ceil(waiting * self._pace)))
                told = f"Too many rows are waiting ({waiting:,} of {room:,}). Try again in {seconds} s."
                raise RefusedError(429, told, code="queue_full", headers={"Retry-After": str(seconds)})
            self._waiting[queue] += job.rows
            self._arrived.append(job)
            self._ready.notify()
        self._metrics.waiting.labels(queue).inc(job.rows)

    def _work(self) -> None:
        while True:
            arrived = self._arrivals(idle=not self._turns)
            if arrived is None:
                self._memory.close()
                return
            able, unable = self._memory.admit(arrived, self._turns)
            self._settle(unable)
            self._take_in(able)
            dead = [job for job in self._turns if job.dead()]
            if dead:
                self._turns = [job for job in self._turns if job not in dead]
                self._metrics.dropped.inc(len(dead))
                self._settle((job, too_late()) for job in dead)
            if not self._turns:
                continue
            lead = self._turns.pop(0)
            began = time.monotonic()
            rows = self._predict(self._batch(lead)) if isinstance(lead, RowsJob) else self._write(lead)
            self._pace = 0.8 * self._pace + 0.2 * (time.monotonic() - began) / max(rows, 1)

    def _arrivals(self, *, idle: bool) -> list[Job] | None:
        """New jobs; None at the end. Where several clients ask at once, it waits for them a moment."""
        with self._ready:
            while idle and not (self._arrived or self._woken or (self._closing and not self._memory.waited_for)):
                if not self._ready.wait(self._memory.patience):
                    break
            self._woken = False
            until = time.monotonic() + self._limits.wait
            while 1 < self._crowd > len(self._arrived) + len(self._turns) and not self._closing:
                left = until - time.monotonic()
                if left <= 0 or not self._ready.wait(left):
                    break
            if self._closing and idle and not self._arrived and not self._memory.waited_for:
                return None
            arrived, self._arrived = self._arrived, []
            return arrived

    def _wake(self) -> None:
        """Look what has become of models that jobs wait for."""
        with self._ready:
            self._woken = True
            self._ready.notify()

    def _take_in(self, arrived: Sequence[Job]) -> None:
        """Tokenise new rows, those of the same model together."""
        same: dict[tuple[str, ...], list[RowsJob]] = {}
        for job in arrived:
            if not isinstance(job, RowsJob):
                self._turns.append(job)
            elif not job.dead():
                same.setdefault((str(id(job.served)), *job.inputs), []).append(job)
            else:
                self._metrics.dropped.inc()
                self._settle([(job, too_late())])
        for jobs in same.values():
            self._begin(jobs)

    def _begin(self, jobs: Sequence[RowsJob]) -> None:
        try:
            self._encode(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._settle([(jobs[0], error)])
                return
            for job in jobs:  # one of them is to blame
                self._begin([job])

    def _encode(self, jobs: Sequence[RowsJob]) -> None:
        predictor = jobs[0].served.predictor
        inputs = {name: [text for job in jobs for text in job.inputs[name]] for name in jobs[0].inputs}
        encoded = encode_rows(predictor, inputs)
        cut, first = rows_cut(predictor, encoded), 0
        for job in jobs:
            own = range(first, first + job.rows)
            error = self._wrong(encoded, own)
            if error is None:
                job.begin(encoded, first, cut)
                self._turns.append(job)
            else:
                self._settle([(job, error)])
            first += job.rows

    def _wrong(self, encoded: Encoded, rows: range) -> Exception | None:
        """Why these rows are not read."""
        tokens, most = int(encoded.full_lengths[rows.start : rows.stop].sum()), self._limits.max_tokens
        if tokens > most:
            told = f"The inputs have {tokens:,} tokens; a request may have {most:,}. Send fewer rows, or shorter ones."
            return RefusedError(422, told, code="too_many_tokens", param="inputs")
        refused = {row: why for row, why in encoded.refused.items() if row in rows}
        if not refused:
            return None
        try:
            refuse_unreadable(replace(encoded, refused=refused), np.arange(1, len(encoded) + 1) - rows.start)
        except Exception as error:
            return error
        return None

    def _batch(self, lead: RowsJob) -> _Taken:
        """Rows of about the same length, those of the lead first."""
        width = max(int(lead.lengths[0]), SHORT)
        room = max(1, self._limits.batch_tokens // width)
        taken: _Taken = []
        others = [job for job in self._turns if isinstance(job, RowsJob) and job.served is lead.served]
        for job in (lead, *others):
            if tuple(job.inputs) != tuple(lead.inputs):
                continue
            rows = job.take(width, room)
            if len(rows):
                taken.append((job, rows))
                room -= len(rows)
            if not room:
                break
        if len(lead.pending):
            self._turns.append(lead)
        done = {id(job) for job, _ in taken if not len(job.pending)}
        self._turns = [job for job in self._turns if id(job) not in done]
        self._crowd = len(taken)
        return taken

    def _predict(self, taken: _Taken) -> int:
        try:
            said = self._forward(taken)
        except Exception as error:
            if len(taken) == 1:
                self._fail(taken[0][0], error)
            else:  # one of them is to blame
                for job, rows in taken:
                    self._predict([(job, rows)])
            return sum(len(rows) for _, rows in taken)
        done, start = [], 0
        for job, rows in taken:
            job.parts.append((rows, said.take(np.arange(start, start + len(rows)))))
            start += len(rows)
            if sum(len(part) for part, _ in job.parts) == job.rows:
                done.append((job, _answered(job)))
        self._settle(done)
        return start

    def _forward(self, taken: _Taken) -> Predictions:
        """What the model says of these rows, in their order."""
        predictor = taken[0][0].served.predictor
        pieces: list[tuple[Encoded, list[np.ndarray]]] = []
        for job, rows in taken:
            if job.encoded is None:
                raise ValueError("rows are tokenised before they are read")
            if not pieces or pieces[-1][0] is not job.encoded:
                pieces.append((job.encoded, []))
            pieces[-1][1].append(job.first + rows)
        parts = [encoded.take(np.concatenate(rows)) for encoded, rows in pieces]
        began = time.monotonic()
        whole = parts[0] if len(parts) == 1 else joined(parts)
        said = predict_encoded(predictor.forward, whole, predictor.task.read_scores or predictor.task.read)
        name = taken[0][0].served.name
        self._metrics.forward.labels(name).observe(time.monotonic() - began)
        self._metrics.batch.labels(name).observe(len(said))
        self._metrics.rows.labels(name).inc(len(said))
        return said

    def _fail(self, job: RowsJob, error: Exception) -> None:
        self._turns = [other for other in self._turns if other is not job]
        self._settle([(job, error)])

    def _write(self, job: Job) -> int:
        self._crowd = 1
        try:
            answer = job.work(job.served.predictor, job.dead) if isinstance(job, WritingJob) else None
        except Exception as error:
            answer = error
        self._metrics.rows.labels(job.served.name).inc(job.rows)
        self._settle([(job, answer)])
        return job.rows

    def _settle(self, done: Iterable[tuple[Job, Any]]) -> None:
        """Hand answers, or errors, to the event loop, all with one call."""
        settled = list(done)
        if not settled:
            return
        with self._ready:
            for job, _ in settled:
                self._waiting[_queue_of(job)] -= job.rows
        for job, _ in settled:
            self._metrics.waiting.labels(_queue_of(job)).dec(job.rows)
        settled[0][0].answer.get_loop().call_soon_threadsafe(_set, settled)


def _answered(job: RowsJob) -> Any:
    """The answer to a job whose rows have all been read, or what went wrong."""
    try:
        return answers_of(job.served, job.inputs, job.predictions(), job.cut)
    except Exception as error:
        return error


def _set(settled: Sequence[tuple[Job, Any]]) -> None:
    for job, answer in settled:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


def _queue_of(job: Job) -> str:
    return "write" if isinstance(job, WritingJob) else "predict"


async def answered(worker: Worker, job: Job, gone: asyncio.Future[Any]) -> Any:
    """What a job gives, if its client stays for it and it is in time.

    Args:
        gone: done when the client has gone.

    Raises:
        RefusedError: the queue is full, or the time is over.
        asyncio.CancelledError: the client has gone.
    """
    worker.submit(job)
    left = job.deadline - time.monotonic()
    try:
        await asyncio.wait({job.answer, gone}, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        job.given_up = not job.answer.done()
    if job.answer.done():
        return job.answer.result()
    job.answer.cancel()
    if gone.done():
        raise asyncio.CancelledError
    raise too_late()
