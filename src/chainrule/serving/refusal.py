"""Why a request is not answered, in the one form that all errors of a server have: OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from chainrule.errors import ChainruleError, Problem, UserError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


class RefusedError(UserError):
    """A request that is not answered.

    Args:
        param: the part of the request that is wrong.
        code: what programs go by.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


def too_late() -> RefusedError:
    """What is said of a request whose time is over."""
    told = "The request was not answered in time. Send fewer rows, ask for fewer tokens, or try again later."
    return RefusedError(504, told, code="timeout")


class JSON(Response):
    """A JSON body. Half a surrogate pair, which UTF-8 cannot hold, is written as JSON's escape."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    """A value as JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def form_of(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """An error as clients read it."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer_of(error: ChainruleError) -> JSON:
    """The response that an error is."""
    if isinstance(error, RefusedError):
        form = form_of(error.status, error.message, error.code, error.param)
        return JSON(form, error.status, error.headers)
    if isinstance(error, UserError):
        told = " ".join([error.message, *(_sentence(problem) for problem in error.problems[:5])])
        more = f" … and {len(error.problems) - 5} more." if len(error.problems) > 5 else ""
        field = error.problems[0].where.field if error.problems else None
        return JSON(form_of(422, told + more, "unprocessable_input", field), 422)
    return JSON(
        form_of(500, "Something went wrong inside Chainrule; the log of the server says what.", "internal"), 500
    )


def _sentence(problem: Problem) -> str:
    told = str(problem)
    return told[0].upper() + told[1:]
