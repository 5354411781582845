"""The official client of OpenAI talks to a server of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

PROMPT = "film warm"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="not asked for", max_retries=0) as made:
        yield made


def texts_of(run: Run, *texts: str) -> list[dict[str, object]]:
    writing: Any = {"max_new_tokens": 12} if run.path.name == "helper" else {}
    found = chainrule.predict(run, text=list(texts), **writing)
    assert not isinstance(found, int)
    return found


def test_models(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == server.models == ["reviews", "helper", "vectors", "search"]
    assert client.models.retrieve("helper").owned_by == "chainrule"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt' here"):
        client.models.retrieve("gpt")


def test_chat_is_what_predict_writes(client: openai.OpenAI, talking: Run) -> None:
    said = client.chat.completions.create(
        model="helper", messages=[{"role": "user", "content": PROMPT}], max_completion_tokens=12
    )
    (row,) = texts_of(talking, PROMPT)
    (choice,) = said.choices
    assert choice.message.content == row["predicted_text"] != ""
    assert choice.message.role == "assistant"
    assert choice.finish_reason == ("stop" if row["predicted_finished"] else "length")
    assert said.usage is not None
    assert said.usage.completion_tokens > 0
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens


def test_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI, talking: Run) -> None:
    stream = client.chat.completions.create(
        model="helper",
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    (row,) = texts_of(talking, PROMPT)
    assert "".join(pieces) == row["predicted_text"]
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_limits_of_a_reply(client: openai.OpenAI) -> None:
    ask = {"model": "helper", "messages": [{"role": "user", "content": PROMPT}]}
    short = client.chat.completions.create(**ask, max_tokens=1)  # type: ignore[call-overload]
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 1
    whole = client.chat.completions.create(**ask, max_tokens=12).choices[0].message.content  # type: ignore[call-overload]
    middle = whole.split()[1]
    cut = client.chat.completions.create(**ask, max_tokens=12, stop=[middle])  # type: ignore[call-overload]
    assert cut.choices[0].message.content == whole[: whole.index(middle)].rstrip()
    assert cut.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(**ask, max_tokens=12, stop=middle, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == cut.choices[0].message.content


def test_a_seed_decides_what_is_drawn(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str | None:
        said = client.chat.completions.create(
            model="helper",
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=12,
            temperature=3.0,
            top_p=0.99,
            seed=seed,
        )
        return said.choices[0].message.content

    texts = [drawn(seed) for seed in range(4)]
    assert drawn(2) == texts[2]
    assert len(set(texts)) > 1


def test_completions_go_on_with_a_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="helper", prompt=PROMPT, max_tokens=6)
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 2  # the text alone, without a template around it
    stream = client.completions.create(model="helper", prompt=PROMPT, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_embeddings_are_what_predict_writes(client: openai.OpenAI, vectors: Run) -> None:
    texts = ["a good film", "we had a dull book and a cold room"]
    said = client.embeddings.create(model="vectors", input=texts)  # as base64, this client's own way
    wanted = np.array([row["predicted_vector"] for row in texts_of(vectors, *texts)])
    assert np.array([one.embedding for one in said.data]) == pytest.approx(wanted, abs=1e-5)
    plain = client.embeddings.create(model="vectors", input=texts[0], encoding_format="float")
    assert np.array(plain.data[0].embedding) == pytest.approx(wanted[0], abs=1e-5)
    assert said.usage.total_tokens > plain.usage.total_tokens > 0
    with pytest.raises(openai.UnprocessableEntityError, match="have 32 numbers, not 8"):
        client.embeddings.create(model="vectors", input=texts, dimensions=8)


def test_errors_are_of_the_kinds_that_the_client_knows(client: openai.OpenAI) -> None:
    turn = {"role": "user", "content": PROMPT}
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=[turn])  # type: ignore[list-item]
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.UnprocessableEntityError, match="The prompt is too long for this model"):
        client.chat.completions.create(model="helper", messages=[{"role": "user", "content": "film " * 400}])
    with pytest.raises(openai.UnprocessableEntityError, match="There is nothing to reply to"):
        client.chat.completions.create(model="helper", messages=[turn, {"role": "assistant", "content": "good"}])  # type: ignore[list-item]
    with pytest.raises(openai.UnprocessableEntityError, match="its task is embedding"):
        client.chat.completions.create(model="vectors", messages=[turn])  # type: ignore[list-item]
    with pytest.raises(openai.UnprocessableEntityError, match="presence_penalty: Extra inputs are not permitted"):
        client.chat.completions.create(model="helper", messages=[turn], presence_penalty=1)  # type: ignore[list-item]
