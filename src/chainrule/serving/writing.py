"""Replies in OpenAI's forms, whole or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from chainrule.data.chat import MESSAGES, REPLY, beginning_of
from chainrule.errors import ChainruleError, DataError, Problem, Where
from chainrule.inference.generate import Writing
from chainrule.inference.given import rows_given
from chainrule.inference.predict import Predictor
from chainrule.inference.streaming import Reply, read_prompt, write_one
from chainrule.serving.refusal import answer_of, encoded, too_late
from chainrule.serving.requests import Chat, Completion
from chainrule.serving.served import Served

Form = Literal["chat.completion", "text_completion"]


def context_of(served: Served, request: Chat | Completion) -> dict[str, Any]:
    """What is read before the reply.

    Raises:
        DataError: messages that are no conversation, or several prompts.
    """
    if isinstance(request, Chat):
        if request.messages[-1].get("role") == REPLY:
            todo = "Ask something after it, or use /v1/completions."
            where = Where(field=MESSAGES)
            problem = Problem("a last message of somebody else", f"one of the {REPLY}", todo, where)
            raise DataError("There is nothing to reply to.", [problem])
        return dict(rows_given(served.predictor, [{MESSAGES: request.messages}]))
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if len(prompts) != 1 or not prompts[0].strip():
        got = "an empty one" if len(prompts) == 1 else f"{len(prompts)}"
        problem = Problem("one text", got, "Send one prompt a request.", Where(field="prompt"))
        raise DataError("There is not one prompt.", [problem])
    return {MESSAGES: [beginning_of(prompts[0])]}


def writing_of(request: Chat | Completion) -> Writing:
    """How the reply is written."""
    given = {
        "max_new_tokens": request.most_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    return Writing.model_validate({name: value for name, value in given.items() if value is not None})


@dataclass
class Telling:
    """A reply on its way from the thread of the models to the event loop, piece by piece.

    Attributes:
        pieces: texts, and at the end the Reply, an error, or nothing more.
    """

    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def tell(self, piece: Any) -> None:
        """Called by the thread of the models."""
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


def work_of(
    request: Chat | Completion, context: dict[str, Any], telling: Telling | None
) -> Callable[[Predictor, Callable[[], bool]], Reply]:
    """What the thread of the models does for a request."""
    writing = writing_of(request)

    def work(predictor: Predictor, halted: Callable[[], bool]) -> Reply:
        forward, tokenizer = predictor.forward, predictor.tokenizer
        try:
            prompt = read_prompt(forward, tokenizer, predictor.task, context, writing)
            tell = (lambda piece: None) if telling is None else telling.tell
            reply = write_one(forward, tokenizer, prompt, writing, stops=request.stops, tell=tell, halted=halted)
            if reply.finish == "halted":
                raise too_late()
        except Exception as error:
            if telling is not None:
                telling.tell(error)
            raise
        if telling is not None:
            telling.tell(reply)
        return reply

    return work


@dataclass(frozen=True)
class Envelope:
    """What stands around each piece of an answer."""

    form: Form
    model: str
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A reply in one piece."""
        if self.form == "chat.completion":
            said: dict[str, Any] = {"message": {"role": REPLY, "content": reply.text, "refusal": None}}
        else:
            said = {"text": reply.text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reply.finish}
        return self._around(self.form, [choice]) | {"usage": usage_of(reply)}

    def piece(self, text: str | None, finish: str | None = None, *, first: bool = False) -> dict[str, Any]:
        """A piece of a stream."""
        if self.form == "text_completion":
            choice = {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}
            return self._around(self.form, [choice])
        delta: dict[str, Any] = {"role": REPLY} if first else {}
        if text is not None:
            delta["content"] = text
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._around("chat.completion.chunk", [choice])

    def counts(self, reply: Reply) -> dict[str, Any]:
        """The last piece of a stream, where it was asked for."""
        form = "chat.completion.chunk" if self.form == "chat.completion" else self.form
        return self._around(form, []) | {"usage": usage_of(reply)}

    @property
    def name(self) -> str:
        """The id that the client sees."""
        return f"{'chatcmpl' if self.form == 'chat.completion' else 'cmpl'}-{self.id}"

    def _around(self, form: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": form,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def usage_of(reply: Reply) -> dict[str, int]:
    """How many tokens were read and written."""
    read, written = int(reply.prompt.lengths[0]), reply.tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def events_of(
    envelope: Envelope,
    telling: Telling,
    first: Any,
    *,
    with_usage: bool,
    keep: Callable[[Reply], Awaitable[None]],
    done: Callable[[], None],
) -> AsyncIterator[bytes]:
    """A stream of server-sent events that ends in [DONE], or in an error.

    Args:
        first: what was told first, for which the beginning of the answer waited.
        keep: given the whole reply before the client knows that it has ended.
        done: called at the end, however that comes about.
    """
    try:
        if envelope.form == "chat.completion":
            yield _event(envelope.piece("", first=True))
        piece = first
        while isinstance(piece, str):
            yield _event(envelope.piece(piece))
            piece = await telling.pieces.get()
        if isinstance(piece, Reply):
            await keep(piece)
            yield _event(envelope.piece(None, piece.finish))
            if with_usage:
                yield _event(envelope.counts(piece))
            yield b"data: [DONE]\n\n"
            return
        error = piece if isinstance(piece, ChainruleError) else ChainruleError(str(piece))
        yield _event(json.loads(bytes(answer_of(error).body)))
    finally:
        done()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"
