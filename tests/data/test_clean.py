"""Cleaning: what changes, what must not, and that it is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.core.recipe import Clean
from chainrule.data.clean import clean_texts, collapse_white_space, remove_html
from chainrule.data.table import Places
from chainrule.data.texts import Texts

pytestmark = pytest.mark.unit


def places(count: int) -> Places:
    return Places("a.csv", np.arange(1, count + 1))


def test_nothing_changes_unless_asked() -> None:
    inputs = {"text": Texts.of(["<b>x</b>  ", "１"])}
    done = clean_texts(inputs, Clean(), places(2), None)
    assert done.inputs == inputs
    assert done.findings == []


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("<p>One</p><p>two</p>", " One  two "),
        ("很<b>好</b>吃", "很好吃"),
        ("a<br/>b", "a b"),
        ("x <!-- hidden --> y", "x   y"),
        ("<script>alert('<b>')</script>z", " z"),
        ('<a href="x>y" class=z>link</a>', "link"),
        ("Fish &amp; chips &#8364;5 &nbsp;&lt;b&gt;", "Fish & chips €5 \xa0<b>"),
        ("a < b and c > d", "a < b and c > d"),
        ("hello <USER>, <3 you", "hello <USER>, <3 you"),
    ],
)
def test_html_goes_and_everything_else_stays(text: str, after: str) -> None:
    assert remove_html(text) == after


def test_white_space_collapses_also_in_chinese() -> None:
    assert collapse_white_space("\u3000 你 \n\t 好\xa0") == "你 好"


def test_every_kind_of_change_is_counted_with_its_rows() -> None:
    options = Clean(unicode_nfkc=True, html=True, white_space=True)
    done = clean_texts({"text": Texts.of(["ok", "１ <i>x</i>", " y", "z"])}, options, places(4), "train")
    assert done.inputs == {"text": ["ok", "1 x", "y", "z"]}
    assert [(found.message, found.rows) for found in done.findings] == [
        ("1 row of train was changed: HTML tags or entities removed.", (2,)),
        ("1 row of train was changed: Unicode normalised (NFKC).", (2,)),
        ("1 row of train was changed: white space collapsed.", (3,)),
    ]


@given(st.text(max_size=80))
def test_white_space_collapsed_once_is_collapsed(text: str) -> None:
    once = collapse_white_space(text)
    assert collapse_white_space(once) == once
    assert "".join(once.split()) == "".join(text.split())


@given(st.text(st.characters(exclude_characters="<&"), max_size=80))
def test_text_without_tags_and_entities_is_untouched(text: str) -> None:
    assert remove_html(text) == text
