"""Answer scores: those of SQuAD's script on English, characters for Chinese, and every text equal to itself."""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.core.spans import Answers, Spans
from chainrule.core.task import Predictions
from chainrule.data.texts import Texts
from chainrule.metrics import answers
from chainrule.metrics.answers import row_scores, words_of

pytestmark = pytest.mark.unit
ENGLISH = st.text(alphabet="aAtThHeEn 19$.,'-", min_size=1, max_size=16)


def squad(text: str) -> list[str]:
    """Lower case, without ASCII punctuation, then without articles, then by white space."""
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def squad_f1(right: str, said: str) -> float:
    gold, found = squad(right), squad(said)
    common = sum((Counter(gold) & Counter(found)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(gold)
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=50)
@given(ENGLISH.filter(squad), ENGLISH.filter(squad))
def test_english_is_scored_as_squad_does(right: str, said: str) -> None:
    exact, f1 = row_scores([right], said)
    assert exact == float(squad(right) == squad(said))
    assert f1 == pytest.approx(squad_f1(right, said), abs=1e-12)


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip())))
def test_any_text_equals_itself_and_differs_from_no_answer(text: str) -> None:
    assert row_scores([text], text) == (1.0, 1.0)
    assert row_scores([text], "") == (0.0, 0.0)
    assert row_scores([], text) == (0.0, 0.0)
    assert row_scores([], "") == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The U.S. dollar ($5)", ["us", "dollar", "5"]),
        ("北京大学", ["北", "京", "大", "学"]),
        ("《三国演义》", ["三", "国", "演", "义"]),
        ("iPhone 4手机，和iPad", ["iphone", "4", "手", "机", "和", "ipad"]),
        ("维生素A", ["维", "生", "素", "a"]),
        ("カタカナ", ["カ", "タ", "カ", "ナ"]),
        ("“quoted”", ["quoted"]),
        ("The", ["the"]),
        ("?!", ["?!"]),
        ("。", ["。"]),
        ("Привет, мир", ["привет", "мир"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("right", "said", "exact", "f1"),
    [
        (["the Eiffel Tower"], "Eiffel tower!", 1.0, 1.0),
        (["in 1990", "1990"], "1990", 1.0, 1.0),
        (["cat sat", "a dog"], "the dog sat", 0.0, 2 / 3),
        (["清华大学"], "北京清华大学", 0.0, 0.8),
        (["在2008年"], "2008年。", 0.0, 0.8),
        (["x x b"], "b b", 0.0, 0.4),
        (["!"], "?", 0.0, 0.0),
        (["yes"], "", 0.0, 0.0),
    ],
)
def test_hand_made_cases(right: list[str], said: str, exact: float, f1: float) -> None:
    assert row_scores(right, said) == pytest.approx((exact, f1))


CONTEXTS = Texts.of(["the red car", "the blue car", "no car here", "nothing"])
TARGETS = Answers(CONTEXTS, Spans.of([[(4, 7, 0)], [(4, 8, 0), (4, 12, 0)], [], []]))
SAID = Predictions(
    Spans.of([[(4, 11, 0)], [(4, 12, 0)], [(0, 2, 0)], [(0, 7, 0)]], np.array([1.0, 1.0, 1.0, -0.5])), np.ones((4, 2))
)


def test_rows_without_an_answer_have_scores_of_their_own() -> None:
    assert answers.measure(TARGETS, SAID) == pytest.approx(
        {
            "exact_match": 0.5,
            "f1": (2 / 3 + 1 + 0 + 1) / 4,
            "HasAns_exact_match": 0.5,
            "HasAns_f1": (2 / 3 + 1) / 2,
            "NoAns_exact_match": 0.5,
            "NoAns_f1": 0.5,
        }
    )
    errors = answers.detail(TARGETS, SAID, ())["errors"]
    assert errors == {"exact": 1, "partly": 1, "elsewhere": 0, "missed": 0, "invented": 1, "none": 1}
    few = np.array([0, 1])
    assert set(answers.measure(TARGETS[few], SAID.take(few))) == {"exact_match", "f1"}
    with pytest.raises(ValueError, match="4 targets and 2 predictions"):
        answers.measure(TARGETS, SAID.take(few))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_weighted_score_is_that_of_repeated_rows(times: list[int]) -> None:
    counts = np.array(times)
    counts[0] += not counts.any()
    weighted = answers.weighted(None, answers.tally(TARGETS, SAID.values), counts[None].astype(float))
    rows = np.repeat(np.arange(4), counts)
    plain = answers.measure(TARGETS[rows], SAID.take(rows))
    assert {name: float(weighted[name][0]) for name in plain} == pytest.approx(plain)


def test_answers_of_several_pieces_are_those_of_the_whole() -> None:
    parts = [TARGETS[np.array([0, 1])], TARGETS[np.array([2, 3])]]
    whole = Answers.joined(parts)
    assert list(whole.texts(whole.spans)) == [["red"], ["blue", "blue car"], [], []]
    assert whole.answered.tolist() == [True, True, False, False]
