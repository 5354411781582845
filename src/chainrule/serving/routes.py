"""The answers of a server: each request is checked, becomes a job, and waits for it."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from chainrule.core.recipe import Spec, parse_options
from chainrule.data.chat import MESSAGES
from chainrule.data.flaws import MAX_PROBLEMS
from chainrule.data.jsontext import unfit
from chainrule.errors import DataError, Problem, RecipeError, Where
from chainrule.inference.answers import with_ranks
from chainrule.inference.generate import Writing, write_texts
from chainrule.inference.given import rows_given, texts_given
from chainrule.inference.predict import Predictor
from chainrule.inference.ranks import RANK, SCORE
from chainrule.inference.streaming import Reply
from chainrule.serving.jobs import Job, RowsJob, WritingJob
from chainrule.serving.limits import Limits
from chainrule.serving.memory import Memory
from chainrule.serving.metrics import Metrics
from chainrule.serving.refusal import JSON, RefusedError, too_late
from chainrule.serving.requests import Chat, Completion, Embeddings, Feedback, Item, Predict, Rank
from chainrule.serving.routing import Routing
from chainrule.serving.served import Served, choose
from chainrule.serving.shadow import Shadows
from chainrule.serving.watching import Kept, Watching
from chainrule.serving.worker import Worker, answered
from chainrule.serving.writing import Envelope, Telling, context_of, events_of, work_of

_AT_ONCE = 8  # rows to be written that go through the model together
_SMALL = 32  # so few rows are checked by the event loop itself
REQUEST_ID = "x-request-id"  # a request with the same id goes to the same model of a split
_HOW = ("max_new_tokens", "beams", "temperature", "top_p", "seed")


@dataclass
class Service:
    """The models with the thread that runs them, and what requests come to.

    Attributes:
        models: by name.
        routing: which of them answers, where a request names none.
        watching: where predictions are kept; None for nowhere.
        budget: bytes that the weights of all models may take together; None for any number.
        say: told which models cannot be loaded.
    """

    models: dict[str, Served]
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    routing: Routing = field(default_factory=Routing)
    watching: Watching | None = None
    budget: int | None = None
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self.memory = Memory(self.models, self.budget, self.metrics, self.say)
        self.worker = Worker(self.limits, self.metrics, self.memory)
        self.shadows = Shadows(self.worker, self.limits, self.metrics)

    async def keep(self, kept: Kept) -> None:
        """Have what was said watched, where there is a monitor."""
        if self.watching is not None:
            await self.watching.keep(kept)

    def deadline(self) -> float:
        """When a request that comes now must be answered."""
        return time.monotonic() + self.limits.timeout


async def predict(service: Service, request: Request, body: Predict) -> Response:
    """Predictions of rows, by a model for any task."""
    name = f"pred-{uuid4().hex}"
    wanted = body.model or service.routing.model_for(request.headers.get(REQUEST_ID, "")[:200] or name)
    served = choose(service.models, wanted, list(service.models.values()), "predicts")
    _check_rows(service.limits, body.inputs, "inputs")
    inputs = await _aside(len(body.inputs), _inputs_of, served, body.inputs)
    job = None
    if served.predictor.task.writes:
        rows = await _written(service, request, served, inputs, body)
    else:
        _refuse_writing(served, body)
        job = _rows_job(service, served, inputs)
        rows = await _answer(service, request, job)
        served = job.served
    if body.model is None and service.routing.split:
        service.metrics.arms.labels(served.name).inc()
    if served.kind == "relevances":
        scored = with_ranks(inputs, [{SCORE: row["score"]} for row in rows])
        rows = [row | {"rank": ranked[RANK]} for row, ranked in zip(rows, scored, strict=True)]
    predictions = [{"id": f"{name}-{place}", **row} for place, row in enumerate(rows)]
    kept = Kept(served, [row["id"] for row in predictions], rows, body.inputs, job)
    await service.keep(kept)
    shadow = service.routing.shadows.get(served.name)
    if shadow is not None and job is not None:
        service.shadows.ask(service.models[shadow], kept, job.inputs, service.watching)
    return JSON({"id": name, "model": served.name, "predictions": predictions})


async def feedback(service: Service, body: Feedback) -> Response:
    """What a prediction should have been."""
    if service.watching is None:
        told = "This server keeps no predictions: it was started without --monitor."
        raise RefusedError(404, told, code="no_monitor")
    _check_rows(service.limits, [body.label] if isinstance(body.label, str) else body.label, "label")
    _check_rows(service.limits, [body.id], "id")
    return JSON(await service.watching.feedback(body))


async def rank(service: Service, request: Request, body: Rank) -> Response:
    """Items in the order of their relevance to a query."""
    able = [served for served in service.models.values() if served.kind == "relevances"]
    served = choose(service.models, body.model, able, "ranks items")
    items = [item if isinstance(item, Item) else Item(text=item) for item in body.items]
    texts = [item.text for item in items]
    _check_rows(service.limits, texts, "items")
    _check_rows(service.limits, [body.query], "query")
    columns = {"query": [body.query] * len(texts), "item": texts}
    inputs = await _aside(len(texts), texts_given, served.predictor, columns)
    job = _rows_job(service, served, inputs)
    rows = await _answer(service, request, job)
    name = f"rank-{uuid4().hex}"
    asked = [{"query": body.query, "item": text} for text in texts]
    await service.keep(Kept(job.served, [f"{name}-{place}" for place in range(len(texts))], rows, asked, job))
    ranks = [row[RANK] for row in with_ranks(inputs, [{SCORE: row["score"]} for row in rows])]
    found = [
        {"index": place, **({} if item.id is None else {"id": item.id}), **row, "rank": rank}
        for place, (item, row, rank) in enumerate(zip(items, rows, ranks, strict=True))
    ]
    best = sorted(found, key=lambda row: (row["rank"], row["index"]))[: body.top]
    return JSON({"id": name, "model": served.name, "results": best})


async def embeddings(service: Service, request: Request, body: Embeddings) -> Response:
    """Vectors of texts, in OpenAI's form."""
    able = [served for served in service.models.values() if served.predictor.task.embeds]
    served = choose(service.models, body.model, able, "makes vectors")
    texts = [body.input] if isinstance(body.input, str) else body.input
    _check_rows(service.limits, texts, "input")
    inputs = await _aside(len(texts), texts_given, served.predictor, {"text": texts})
    job = _rows_job(service, served, inputs)
    rows = await _answer(service, request, job)
    vectors = np.array([row["vector"] for row in rows], "<f4")
    if body.dimensions not in (None, vectors.shape[1]):
        told = f"The vectors of this model have {vectors.shape[1]} numbers, not {body.dimensions}."
        raise RefusedError(422, told, code="unsupported", param="dimensions")
    encoded = job.encoded
    tokens = 0 if encoded is None else int(encoded.lengths[job.first : job.first + job.rows].sum())
    made = [
        base64.b64encode(vector.tobytes()).decode() if body.encoding_format == "base64" else vector.tolist()
        for vector in vectors
    ]
    name = uuid4().hex
    await service.keep(Kept(job.served, [f"embd-{name}-{place}" for place in range(len(texts))], rows, texts, job))
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(made)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSON({"object": "list", "data": data, "model": served.name, "usage": usage})


async def write(service: Service, request: Request, body: Chat | Completion) -> Response:
    """A reply to a conversation, or more of a text, in OpenAI's forms."""
    able = [served for served in service.models.values() if served.chats]
    served = choose(service.models, body.model, able, "writes replies")
    _check_texts(service.limits, body)
    context = context_of(served, body)
    loop = asyncio.get_running_loop()
    telling = Telling(loop) if body.stream else None
    work = work_of(body, context, telling)
    job = WritingJob(served, 1, service.deadline(), loop.create_future(), work=work)
    envelope = Envelope("chat.completion" if isinstance(body, Chat) else "text_completion", served.name)
    if telling is None:
        reply = await _answer(service, request, job)
        await _note(service, job.served, (envelope, body), reply)
        return JSON(envelope.whole(reply))
    return await _streamed(service, request, job, telling, (envelope, body))


async def _note(service: Service, served: Served, asked: tuple[Envelope, Chat | Completion], reply: Reply) -> None:
    """Count and keep a reply."""
    envelope, body = asked
    service.metrics.written.labels(served.name).inc(reply.tokens)
    given = {"messages": body.messages} if isinstance(body, Chat) else {"prompt": body.prompt}
    answer = {"text": reply.text, "finished": reply.finish == "stop", "tokens": reply.tokens}
    await service.keep(Kept(served, [envelope.name], [answer], [given], prompt=reply.prompt))


async def _streamed(
    service: Service, request: Request, job: WritingJob, telling: Telling, told: tuple[Envelope, Chat | Completion]
) -> Response:
    """A stream that begins when the first piece is there: what goes wrong before has a status of its own."""
    envelope, body = told
    service.worker.submit(job)
    job.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())

    def done() -> None:
        job.given_up = True

    first = asyncio.ensure_future(telling.pieces.get())
    with _departure(request) as gone:
        left = max(0.0, job.deadline - time.monotonic())
        await asyncio.wait({first, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        deserted = gone.done()
    error = too_late() if not first.done() else first.result() if isinstance(first.result(), Exception) else None
    if error is not None:
        done()
        first.cancel()
        raise asyncio.CancelledError if deserted else error
    usage = body.stream_options is not None and body.stream_options.include_usage

    async def keep(reply: Reply) -> None:
        await _note(service, job.served, told, reply)

    events = events_of(envelope, telling, first.result(), with_usage=usage, keep=keep, done=done)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _rows_job(service: Service, served: Served, inputs: Mapping[str, Sequence[str]]) -> RowsJob:
    count = len(next(iter(inputs.values())))
    answer = asyncio.get_running_loop().create_future()
    return RowsJob(served, count, service.deadline(), answer, inputs=dict(inputs))


async def _written(
    service: Service, request: Request, served: Served, inputs: Mapping[str, Sequence[str]], body: Predict
) -> list[dict[str, Any]]:
    given = {name: value for name in _HOW if (value := getattr(body, name)) is not None}
    writing = parse_options(Writing, Spec(name="text", options=given), "predict")
    count = len(next(iter(inputs.values())))
    limit = None if served.chats else served.predictor.artifact.manifest.max_length

    def work(predictor: Predictor, halted: Callable[[], bool]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for start in range(0, count, _AT_ONCE):
            if halted():
                break
            few = {name: texts[start : start + _AT_ONCE] for name, texts in inputs.items()}
            found = write_texts(predictor.forward, predictor.tokenizer, predictor.task, few, writing, limit)
            for text, finished, cut in zip(found.texts, found.finished.tolist(), found.cut.tolist(), strict=True):
                rows.append({"text": text, "finished": finished, **({"cut": True} if cut else {})})
            service.metrics.written.labels(served.name).inc(int(found.tokens.sum()))
        return rows

    answer = asyncio.get_running_loop().create_future()
    rows: list[dict[str, Any]] = await _answer(
        service, request, WritingJob(served, count, service.deadline(), answer, work=work)
    )
    return rows


async def _answer(service: Service, request: Request, job: Job) -> Any:
    with _departure(request) as gone:
        return await answered(service.worker, job, gone)


@contextmanager
def _departure(request: Request) -> Iterator[asyncio.Future[Any]]:
    """Inside, a future that is done when the client has gone."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(leave())
    try:
        yield task
    finally:
        task.cancel()


async def _aside(rows: int, function: Any, *arguments: Any) -> Any:
    """Call a function, of many rows in another thread than the event loop's."""
    return function(*arguments) if rows <= _SMALL else await run_in_threadpool(function, *arguments)


def _inputs_of(served: Served, rows: Sequence[Any]) -> dict[str, Sequence[str]]:
    """Texts or objects as the fields that the model reads.

    Raises:
        DataError: both at once, or what `texts_given` and `rows_given` refuse.
    """
    texts = [row for row in rows if isinstance(row, str)]
    if texts and len(texts) < len(rows):
        problem = Problem("either texts or objects", f"{len(texts)} texts of {len(rows)} rows", "Send one kind.")
        raise DataError("The inputs are of two kinds.", [problem])
    if served.predictor.task.sees:
        return texts_given(served.predictor, {"image": _uris(rows)})
    return texts_given(served.predictor, {"text": texts}) if texts else rows_given(served.predictor, rows)


def _uris(rows: Sequence[Any]) -> list[str]:
    """Images as data URIs; a path would be one of the server's own files.

    Raises:
        DataError: some are something else.
    """
    found = [row.get("image") if isinstance(row, dict) else row for row in rows]
    todo = "Send data:image/png;base64,… with the bytes of the file."
    problems = [
        Problem("an image as a data URI", "something else", todo, Where(row=number, field="image"))
        for number, cell in enumerate(found, start=1)
        if not isinstance(cell, str) or not cell.startswith("data:")
    ]
    if problems:
        raise DataError("There are inputs that are no images.", problems[:MAX_PROBLEMS])
    return [str(cell) for cell in found]


def _check_rows(limits: Limits, rows: Sequence[Any], param: str) -> None:
    """Refuse no rows, too many, texts that are too long, and texts that UTF-8 cannot hold."""
    if not rows:
        raise RefusedError(422, f"The request has no {param}: send at least one.", code="empty", param=param)
    if len(rows) > limits.max_rows:
        told = f"The request has {len(rows):,} {param}; it may have {limits.max_rows:,}. Send them in several requests."
        raise RefusedError(413, told, code="too_many_rows", param=param)
    for place, row in enumerate(rows):
        wrong = unfit(row)
        if wrong:
            what = "half of a surrogate pair" if wrong == "surrogate" else "too deep a nesting"
            raise RefusedError(422, f"{param}[{place}] has {what}.", code="unreadable_text", param=f"{param}[{place}]")
        cells = row.values() if isinstance(row, dict) else [row]
        longest = max((len(cell) for cell in cells if isinstance(cell, str | list)), default=0)
        if longest > limits.max_text and not (isinstance(row, str) and row.startswith("data:")):
            told = f"{param}[{place}] has {longest:,} characters; a text may have {limits.max_text:,}."
            raise RefusedError(422, told, code="text_too_long", param=f"{param}[{place}]")


def _check_texts(limits: Limits, body: Chat | Completion) -> None:
    if isinstance(body, Chat):
        _check_rows(limits, [message.get("content") or "" for message in body.messages], MESSAGES)
        _check_rows(limits, body.messages, MESSAGES)
    else:
        _check_rows(limits, [body.prompt] if isinstance(body.prompt, str) else body.prompt, "prompt")
    for stop in body.stops:
        _check_rows(limits, [stop], "stop")


def _refuse_writing(served: Served, body: Predict) -> None:
    given = [name for name in _HOW if getattr(body, name) is not None]
    if given:
        problem = Problem(
            "a model that writes replies", served.task, f"Leave out {', '.join(given)}.", Where(field=given[0])
        )
        raise RecipeError("This model writes no text.", [problem])
