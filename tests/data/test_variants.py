"""Changed copies of texts: as many as asked for, of the words that there are, the same for the same seed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.data.variants import LEFT_OUT, LONGEST_SPAN, REPLACED, SPAN, variants_of

pytestmark = pytest.mark.unit
ROWS = {"text": ["a quick brown fox jumps over the lazy dog"] * 200}


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_as_many_as_asked_for_and_the_same_each_time(texts: list[str], count: int, seed: int) -> None:
    columns = {"text": texts, "text_pair": texts[::-1]}
    made = variants_of(columns, count, seed)
    assert made == variants_of(columns, count, seed)
    words = set(re.findall(r"\w|[^\w\s]", "".join(texts)))
    assert {len(column) for column in made.values()} == {len(texts) * count if words else 0}
    for column in made.values():
        assert all(text.strip() or text in texts for text in column)
        assert set(re.findall(r"\w|[^\w\s]", "".join(column))) <= words


def test_of_a_pair_one_text_is_changed() -> None:
    columns = {"text": ["one two three four five"] * 50, "text_pair": ["six seven eight nine ten"] * 50}
    made = variants_of(columns, 1, 0)
    changed = [[made[name][row] != columns[name][row] for name in columns] for row in range(50)]
    assert not any(all(row) for row in changed)
    assert {row.index(True) for row in changed if any(row)} == {0, 1}


def test_how_often_words_are_left_out_and_texts_cut() -> None:
    """Of texts that were not cut to a span, which all of at most five words may have been."""
    made = variants_of(ROWS, 20, 1)["text"]
    lengths = [len(text.split()) for text in made]
    whole = sum(length > LONGEST_SPAN for length in lengths) / len(lengths)
    assert whole == pytest.approx(1 - SPAN, abs=0.03)
    mean = sum(length for length in lengths if length > LONGEST_SPAN) / sum(length > LONGEST_SPAN for length in lengths)
    assert mean == pytest.approx(9 * (1 - LEFT_OUT), abs=0.1)
    kept = [text.split() for text in made if len(text.split()) == 9]
    same = sum(word == old for words in kept for word, old in zip(words, ROWS["text"][0].split(), strict=True))
    other = REPLACED / (1 - LEFT_OUT) * 8 / 9  # one word in nine is replaced by itself
    assert same / (9 * len(kept)) == pytest.approx(1 - other, abs=0.02)


def test_what_is_written_without_spaces_is_changed_by_characters() -> None:
    made = variants_of({"text": ["\u4eca\u5929\u5929\u6c14\u5f88\u597d", "\u7535\u5f71\u4e0d\u9519"]}, 50, 0)["text"]
    assert not any(" " in text for text in made)
    assert len(set(made)) > 40
