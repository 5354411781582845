"""Scores of written texts: those of the packages where they know the script, and 1 for what is a reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu import corpus_bleu, corpus_chrf

from chainrule.metrics.written import NAMES, Written, measure, tally, weighted, words_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from rouge_score.rouge_scorer import RougeScorer

pytestmark = pytest.mark.unit
TOKENS = ["the", "The", "cat", "sat", "on_a", "mat,", "dog", "12", "away!"]
WORDS = st.lists(st.sampled_from(TOKENS), max_size=9).map(" ".join)
ROWS = st.lists(st.tuples(WORDS.filter(words_of), WORDS.filter(words_of), WORDS), min_size=1, max_size=5)


def scores(references: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, float]:
    return measure(tally(references, Written(texts, np.arange(len(texts)), np.ones(len(texts), bool))))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_parity_with_the_packages_on_ascii(rows: list[tuple[str, str, str]]) -> None:
    references, texts = [[first, second] for first, second, _ in rows], [text for *_, text in rows]
    found = scores(references, texts)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    rows_of = [scorer.score_multi(right, text) for right, text in zip(references, texts, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(np.mean([row[name].fmeasure for row in rows_of]), abs=1e-12)
    streams = list(zip(*references, strict=True))
    assert found["bleu"] == pytest.approx(corpus_bleu(texts, streams).score / 100, abs=1e-12)
    assert found["chrf"] == pytest.approx(corpus_chrf(texts, streams).score / 100, abs=1e-12)


def test_parity_where_rows_have_different_numbers_of_references() -> None:
    references, texts = [["a cat sat on the mat"], ["the dog ran away now", "it ran off"]], ["a cat sat", "it ran away"]
    streams = [["a cat sat on the mat", "the dog ran away now"], [None, "it ran off"]]
    found = scores(references, texts)
    assert found["bleu"] == pytest.approx(corpus_bleu(texts, streams).score / 100)
    assert found["chrf"] == pytest.approx(corpus_chrf(texts, streams).score / 100)


@pytest.mark.parametrize(
    "text",
    [
        "今天的会议改到明天下午三点。",
        "きょうの会議は明日の午後三時に変わりました。",
        "Ein Mädchen läuft über die Straße, schnell!",
        "उसने हिन्दी में एक पत्र लिखा है।",
    ],
)
def test_a_text_that_is_its_reference_scores_one_in_any_script(text: str) -> None:
    found = scores([[text]], [text])
    assert {name for name in NAMES if found[name] != 1.0} == {"length"}


def test_chinese_and_japanese_are_compared_character_by_character() -> None:
    assert words_of("北京 2024年,OK") == ["北", "京", "2024", "年", "ok"]
    assert words_of("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words_of("?!") == ["?!"]
    found = scores([["我们明天去北京开会"]], ["我们明天去上海开会"])
    assert found["rouge1"] == pytest.approx(7 / 9)
    assert found["rougeL"] == pytest.approx(7 / 9)
    said, right = ["我们明天去上海开会"], [["我们明天去北京开会"]]
    assert found["bleu"] == pytest.approx(corpus_bleu(said, right, tokenize="zh").score / 100)
    said, right = ["きょうは雨です"], [["きょうは晴れです"]]
    assert scores(right, said)["bleu"] == pytest.approx(corpus_bleu(said, right, tokenize="char").score / 100)


def test_nothing_written_scores_nothing() -> None:
    found = scores([["a cat sat on the mat"], ["b"]], ["", ""])
    assert {name: found[name] for name in NAMES[:6]} == dict.fromkeys(NAMES[:6], 0.0)


def test_each_score_takes_the_reference_it_is_highest_for() -> None:
    references = ["cat the sat", "the cat stood there"]
    found = scores([references], ["the cat sat"])
    assert found["rouge1"] == 1.0
    assert found["rouge2"] == pytest.approx(2 * 1 / (2 + 3))
    assert scores([["x", "the cat "]], ["the cat"])["exact_match"] == 1.0
    assert scores([list(reversed(references))], ["the cat sat"]) == found, "which comes first must not matter"


def test_rows_that_are_weighed_are_rows_that_are_repeated() -> None:
    references = [["the cat sat on a mat"], ["a dog ran away", "it ran"], ["we went home at last"]]
    texts = ["the cat sat on the mat", "it ran away", "we are home"]
    written = Written(texts, np.array([6, 3, 3]), np.array([True, False, True]))
    found = weighted(None, tally(references, written), np.array([[1, 1, 1], [2, 0, 1]]))
    again = [0, 0, 2]
    few = Written([texts[row] for row in again], written.tokens[again], np.array([True, True, True]))
    repeated = measure(tally([references[row] for row in again], few))
    assert {name: values[1] for name, values in found.items()} == pytest.approx(repeated)
    assert found["stop_rate"].tolist() == pytest.approx([2 / 3, 1.0])
    assert found["length"].tolist() == pytest.approx([4.0, 5.0])


def test_texts_that_no_model_has_written_have_no_stop_rate() -> None:
    found = measure(tally([["a b"]], Written(["a b"], np.array([2]))))
    assert list(found) == [name for name in NAMES if name != "stop_rate"]


@pytest.mark.parametrize(("references", "texts"), [([], []), ([["a"]], ["a", "b"]), ([[]], ["a"])])
def test_rows_without_anything_to_compare_with_are_refused(references: list[list[str]], texts: list[str]) -> None:
    with pytest.raises(ValueError, match="needs a reference"):
        tally(references, Written(texts, np.ones(len(texts))))
