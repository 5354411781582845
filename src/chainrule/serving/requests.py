"""What clients send, as pydantic reads it; what is not named here is refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = str
Row = dict[str, Any]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Predict(_Request):
    """Rows to predict: texts, or objects as the lines of a JSONL file would be.

    The last five say how texts are written, by models that write.
    """

    inputs: list[Text | Row]
    model: str | None = None
    max_new_tokens: int | None = None
    beams: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class Feedback(_Request):
    """What a prediction should have been: the `id` that stood beside it, and the true label, or labels."""

    id: str = Field(min_length=1, max_length=600)
    label: str | list[str]


class Item(_Request):
    """An item with a name of the client's own, which comes back with it."""

    text: str
    id: str | int | None = None


class Rank(_Request):
    """Items to be ranked for a query; `top` leaves all but the best out of the answer."""

    query: str
    items: list[Text | Item]
    top: int | None = Field(default=None, ge=1)
    model: str | None = None


class Embeddings(_Request):
    """Texts to be made vectors of, in OpenAI's form."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class StreamOptions(_Request):
    """`include_usage`: a last piece of the stream counts the tokens."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Writing(_Request):
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end a reply."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in found if text]

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that are written."""
        return self.max_tokens


class Chat(_Writing):
    """A conversation to be answered, in OpenAI's form; without a temperature the likeliest token is taken each time."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class Completion(_Writing):
    """A text to be gone on with, in OpenAI's form."""

    prompt: str | list[str]
    echo: Literal[False] | None = None
