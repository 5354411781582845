"""Tokens in the cache: found again where nothing has changed, and made anew where anything has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.data import tokens
from chainrule.data.chat import MESSAGES, prompt_of
from chainrule.data.encode import Encoded, encode
from chainrule.data.texts import Texts
from chainrule.data.tokens import encode_once
from chainrule.tasks import conversation
from chainrule.testing.models import tiny_tokenizer

pytestmark = pytest.mark.unit

TEXTS = Texts.of(["good film", "我很喜欢", "a", "the book was very dull"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    monkeypatch.setattr(tokens, "FEWEST_CHARACTERS", 10)
    return tmp_path / "tokens"


class Counted:
    """An `encode` that knows how often it was asked."""

    def __init__(self, inner: Callable[..., Encoded]) -> None:
        self.inner, self.calls, self.__module__ = inner, 0, inner.__module__

    def __call__(self, tokenizer: Any, inputs: Any, targets: Any, max_length: int) -> Encoded:
        self.calls += 1
        return self.inner(tokenizer, inputs, targets, max_length)


def same(one: Encoded, two: Encoded) -> bool:
    pairs = [(getattr(one, field.name), getattr(two, field.name)) for field in fields(Encoded)]
    return all(np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_rows_are_tokenised_once_and_labels_are_not_kept() -> None:
    counted, tokenizer = Counted(encode), tiny_tokenizer(64)
    first = encode_once(counted, tokenizer, {"text": TEXTS}, np.arange(4), 5)
    again = encode_once(counted, tokenizer, {"text": TEXTS[np.arange(4)]}, np.arange(4), 5)
    assert counted.calls == 1
    assert same(first, again)
    assert same(again, encode(tokenizer, {"text": list(TEXTS)}, np.arange(4), 5))
    assert isinstance(again.ids.base, np.memmap)
    other = encode_once(counted, tokenizer, {"text": TEXTS}, np.ones(4), 5)
    assert counted.calls == 1
    assert other.targets is not None
    assert other.targets.tolist() == [1, 1, 1, 1]


def test_whatever_the_tokens_follow_from_is_in_the_key(cache: Path) -> None:
    counted = Counted(encode)

    def made(texts: Any = TEXTS, tokenizer: Any = None, length: int = 64, name: str = "text") -> int:
        before = counted.calls
        encode_once(counted, tokenizer or tiny_tokenizer(64), {name: texts}, None, length)
        return counted.calls - before

    assert made() == 1
    assert made() == 0
    assert made(length=5) == 1
    assert made(name="text_a") == 1
    assert made(TEXTS[::-1]) == 1
    assert made(Texts.of(["good film我", "很喜欢", "a", "the book was very dull"])) == 1
    lower = tiny_tokenizer(64)
    lower.backend_tokenizer.normalizer = None
    assert made(tokenizer=lower) == 1
    more = tiny_tokenizer(64)
    more.add_tokens(["film good"])
    assert made(tokenizer=more) == 1
    assert made() == 0
    assert made(Texts.of(["short"])) == 1
    assert made(Texts.of(["short"])) == 1  # is not worth keeping
    counted.__module__ = "another"
    assert made() == 1
    assert len(list(cache.iterdir())) == 8


def test_conversations_are_kept_with_what_is_learned_and_refused() -> None:
    tokenizer = tiny_tokenizer(64, decoder=True)
    conversation.prepare_tokenizer(tokenizer)
    inputs = {MESSAGES: Texts.of([prompt_of("a film"), prompt_of("the book"), "[]"])}
    counted = Counted(conversation.encode)

    def made(*replies: str) -> Encoded:
        return encode_once(counted, tokenizer, inputs, Texts.of(replies), 64)

    first, again = made("good", "bad", "dull"), made("good", "bad", "dull")
    assert counted.calls == 1
    assert same(first, again)
    assert again.targets is not None
    assert again.targets.tolist() == [2, 2, 0]
    assert list(again.refused) == [2]
    made("good", "bad", "cold")
    assert counted.calls == 2
    tokenizer.chat_template = tokenizer.chat_template.replace("capitalize", "upper")
    made("good", "bad", "dull")
    assert counted.calls == 3


def test_an_entry_that_was_changed_is_made_anew(cache: Path) -> None:
    counted, tokenizer = Counted(encode), tiny_tokenizer(64)

    def made() -> Encoded:
        return encode_once(counted, tokenizer, {"text": TEXTS}, None, 64)

    wanted = made()
    [entry] = cache.iterdir()
    for name in ("ids.npy", "offsets.npy", "tokens.json"):
        for keep, end in ((-1, b"x"), (20, b""), (0, b"")):
            before = counted.calls
            (entry / name).write_bytes((entry / name).read_bytes()[:keep] + end)
            assert same(made(), wanted)
            assert counted.calls == before + 1
            assert same(made(), wanted)
            assert counted.calls == before + 1
    (entry / "ids.npy").unlink()
    assert same(made(), wanted)


def test_without_a_cache_or_room_in_it_rows_are_tokenised(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(64)
    wanted = encode(tokenizer, {"text": TEXTS}, None, 64)
    monkeypatch.setattr(tokens, "LIMIT_BYTES", 10)
    assert same(encode_once(encode, tokenizer, {"text": TEXTS}, None, 64), wanted)
    assert list(cache.iterdir()) == []
    cache.rmdir()
    cache.write_text("a file")
    assert same(encode_once(encode, tokenizer, {"text": TEXTS}, None, 64), wanted)
