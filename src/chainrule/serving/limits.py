"""What a server takes, and how long anything may last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from chainrule.core.parsing import validation_problems
from chainrule.core.recipe import Section
from chainrule.errors import Problem, RecipeError, Where

_UNITS = {"m": 2**20, "g": 2**30}


class Limits(Section):
    """The limits of a server.

    Attributes:
        max_rows: rows of one request.
        max_text: characters of one text.
        max_tokens: tokens of all rows of one request.
        max_body: bytes of the body of a request.
        queue: rows of all requests that may wait; what comes beyond them is sent away with 429.
        writing_queue: the same of texts to be written.
        timeout: seconds until a request must be answered.
        wait: seconds that a batch may wait for more rows while several clients are asking.
        batch_tokens: padded tokens of one batch.
        reading: seconds that a client has for sending its request, and for taking each piece of the answer.
    """

    max_rows: int = Field(default=1_000, ge=1)
    max_text: int = Field(default=100_000, ge=1)
    max_tokens: int = Field(default=200_000, ge=1)
    max_body: int = Field(default=4 * 2**20, ge=1)
    queue: int = Field(default=2_000, ge=1)
    writing_queue: int = Field(default=32, ge=1)
    timeout: float = Field(default=30.0, gt=0)
    wait: float = Field(default=0.002, ge=0)
    batch_tokens: int = Field(default=4_096, ge=1)
    reading: float = Field(default=10.0, gt=0)


def read_memory(text: str) -> int:
    """2G or 500M in bytes.

    Raises:
        RecipeError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mg])", text.strip().lower())
    if found is None or not float(found[1]):
        problem = Problem("a size such as 2G or 500M", repr(text), "Change --memory.", Where(field="memory"))
        raise RecipeError("The memory for models cannot be read.", [problem])
    return int(float(found[1]) * _UNITS[found[2]])


def read_limits(values: Mapping[str, Any]) -> Limits:
    """The limits that are given, and the others at their defaults.

    Raises:
        RecipeError: one is out of range; all of them are named.
    """
    try:
        return Limits.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError("The limits of the server are wrong.", validation_problems(error, Limits, None)) from None
