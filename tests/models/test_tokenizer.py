"""Vocabularies that are counted in texts."""

from __future__ import annotations

from typing import Any

import pytest

from chainrule.models.tokenizer import SPECIAL, Unit, make_tokenizer, natural_unit

pytestmark = pytest.mark.unit


def made(texts: list[str], unit: Unit, *, size: int = 300, min_count: int = 1, lowercase: bool = True) -> Any:
    return make_tokenizer(texts, unit, size=size, min_count=min_count, lowercase=lowercase)


def tokens(tokenizer: Any, *texts: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(*texts)["input_ids"]))


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (["房间很干净", "iPhone 不错"], "character"),
        (["とても良い映画でした"], "character"),
        (["หนังดีมาก"], "character"),
        (["I ate 饺子 and 包子 in the old town"], "word"),
        (["영화가 좋았어요"], "word"),
        (["un très bon film"], "word"),
        (["12 !?"], "word"),
        ([], "word"),
    ],
)
def test_the_script_decides_what_a_token_is(texts: list[str], unit: str) -> None:
    assert natural_unit(texts) == unit


def test_words_numbers_marks_and_chinese_characters() -> None:
    text = "The film's   Très bon,\n不错 7"
    assert tokens(made([text], "word"), text) == [
        *("the", "film", "'", "s", "très", "bon", ",", "不", "错", "7", "[SEP]")
    ]
    assert tokens(made([text], "word", lowercase=False), text)[0] == "The"
    assert tokens(made(["cafe\u0301"], "word"), "caf\u00e9") == ["café", "[SEP]"]


def test_characters_with_one_space_for_white_space() -> None:
    tokenizer = made(["Ab\t \u3000不 "], "character")
    assert tokens(tokenizer, " aB \n不") == ["a", "b", " ", "不", "[SEP]"]
    assert tokenizer.decode(tokenizer("aB 不")["input_ids"], skip_special_tokens=True) == "ab 不"


def test_bytes_know_every_text() -> None:
    tokenizer = made(["nothing of this"], "byte", size=10, min_count=9)
    assert len(tokenizer) == 256 + len(SPECIAL)
    ids = tokenizer("不 😀\x00\n")["input_ids"]
    assert len(ids) == len("不 😀\x00\n".encode()) + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "不 😀\x00\n"


def test_rare_words_are_unknown_and_the_size_is_kept() -> None:
    texts = ["c c c b b a a d"]
    assert set(made(texts, "word", min_count=2).get_vocab()) == {*SPECIAL, "a", "b", "c"}
    small = made(texts, "word", size=len(SPECIAL) + 2)
    assert set(small.get_vocab()) == {*SPECIAL, "c", "a"}, "of as frequent words the one that sorts first"
    assert tokens(small, "c d") == ["c", "[UNK]", "[SEP]"]
    many = [f"w{number}" for number in range(500)]
    assert made(many, "word", size=300).get_vocab() == made(many[::-1], "word", size=300).get_vocab()


def test_padding_border_and_texts_without_tokens() -> None:
    tokenizer = made(["a b c"], "word")
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == [0, 1, 2]
    assert tokens(tokenizer, "a b", "c") == ["a", "b", "[SEP]", "c", "[SEP]"]
    assert tokens(tokenizer, " \n") == ["[SEP]"]
    batch = tokenizer(["a b c", ""], padding=True)
    assert batch["input_ids"][1][1:] == [0, 0, 0]
    assert tokenizer("a b c", "a b c", truncation=True, max_length=4)["input_ids"][-1] == 2
    assert len(made([], "word")) == len(SPECIAL)
