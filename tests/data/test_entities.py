"""Marked texts: words with tags and texts with spans come to one form, and every bad row is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from chainrule.core.recipe import Clean, Data
from chainrule.core.spans import Spans, together
from chainrule.data.entities import (
    as_input,
    is_words,
    read_marked,
    spans_of,
    tag_names,
    tags_of,
    text_of_words,
    units_of,
)
from chainrule.data.load import Dataset, load
from chainrule.data.table import Table
from chainrule.data.targets import Entities, labels_of
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit
TASK = find_task("token-classification")
LABELS = ("LOC", "ORG", "PER")
TAGS = st.lists(st.sampled_from(tag_names(LABELS)), min_size=1, max_size=12)
WORDS = st.lists(st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=5), min_size=1, max_size=9)


def marked(
    rows: Sequence[dict[str, Any]], source: str = "tokens"
) -> tuple[list[list[tuple[int, int, str]]], list[str]]:
    """The entities of each row by name, and the kinds of flaws."""
    columns = {name: pa.array([row.get(name) for row in rows]) for name in (source, "entities")}
    table = Table("x.jsonl", pa.table(columns), np.arange(1, len(rows) + 1))
    found = read_marked(table, {source: source, "entities": "entities"}, "entities")
    named = [[(s, e, found.values.names[kind]) for s, e, kind in row] for row in found.values.spans.each()]
    return named, [flaw.kind for flaw in found.flaws]


def problem(row: dict[str, Any], source: str = "tokens") -> str:
    """What is said of a row that cannot be used."""
    columns = {name: pa.array([row[name]]) for name in (source, "entities")}
    table = Table("x.jsonl", pa.table(columns), np.array([7]))
    flaws = read_marked(table, {source: source, "entities": "entities"}, "entities").flaws
    (found,) = [flaw.problem for flaw in flaws if flaw.problem is not None]
    return str(found)


def test_words_make_a_text_with_spaces_between_all_but_chinese_and_japanese_ones() -> None:
    assert text_of_words(["EU", "rejects", "."]) == ("EU rejects .", [0, 3, 11])
    assert text_of_words(["李", "开", "复", "，", "iPhone", "4", "好"]) == (
        "李开复， iPhone 4 好",
        [0, 1, 2, 3, 5, 12, 14],
    )


@given(WORDS)
def test_the_words_of_a_list_stand_where_they_are_said_to(words: list[str]) -> None:
    text, units = units_of(as_input(words))
    assert [text[start:end] for start, end in units] == words
    assert is_words(as_input(words))


@given(st.text(max_size=40))
def test_the_words_of_a_text_follow_each_other_and_leave_out_white_space_alone(text: str) -> None:
    same, units = units_of(as_input(text))
    assert same == text
    assert not is_words(as_input(text))
    places = [place for start, end in units for place in range(start, end)]
    assert places == sorted(set(places))
    assert all(not text[start:end].isspace() for start, end in units)
    left = "".join(letter for place, letter in enumerate(text) if place not in set(places))
    assert not any(letter.isalnum() for letter in left)


def test_a_text_is_cut_into_words_marks_and_single_characters_of_chinese() -> None:
    text, units = units_of(as_input("AL-AIN, 1996年的U.S. 東京タワー"))
    assert units_of(as_input("上海\u3000人"))[1] == [(0, 1), (1, 2), (3, 4)]  # their white space, too, is none
    words = [text[start:end] for start, end in units]
    assert words == ["AL", "-", "AIN", ",", "1996", "年", "的", "U", ".", "S", ".", *"東京タワー"]


@given(TAGS)
def test_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    words = [f"w{place}" for place in range(len(tags))]
    rows, _ = marked([{"tokens": words, "entities": tags}])
    units = units_of(as_input(words))[1]
    expected = [(units[first][0], units[last][1], kind) for kind, first, last in get_entities(tags)]
    assert rows == [expected]
    codes = [tag_names(LABELS).index(tag) for tag in tags]
    again = spans_of(codes, units)
    assert [(start, end, LABELS[kind]) for start, end, kind in again] == expected
    assert spans_of(tags_of(again, units).tolist(), units) == again


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        (["B-PER", "I-PER", "E-PER", "S-LOC"], [(0, 5, "PER"), (6, 7, "LOC")]),
        (["B-PER", "L-PER", "U-LOC", "U-LOC"], [(0, 3, "PER"), (4, 5, "LOC"), (6, 7, "LOC")]),
        (["B-PER", "M-PER", "E-PER", "O"], [(0, 5, "PER")]),
        (["B-PER.NAM", "I-PER.NAM", "O", "B-GPE-X"], [(0, 3, "PER.NAM"), (6, 7, "GPE-X")]),
    ],
    ids=["BIOES", "BILOU", "BMES", "names"],
)
def test_other_schemes_are_read(tags: list[str], entities: list[tuple[int, int, str]]) -> None:
    assert marked([{"tokens": list("abcd"), "entities": tags}]) == ([entities], [])


def test_an_inside_tag_that_continues_nothing_begins_an_entity_and_is_told() -> None:
    rows, flaws = marked([{"tokens": ["a", "b", "c"], "entities": ["I-PER", "I-PER", "I-LOC"]}])
    assert rows == [[(0, 3, "PER"), (4, 5, "LOC")]]
    assert flaws == ["inside-without-begin"]


def test_words_and_tags_may_be_texts() -> None:
    assert marked([{"tokens": "EU rejects", "entities": "B-ORG O"}]) == ([[(0, 2, "ORG")]], [])
    assert marked([{"tokens": '["EU"]', "entities": '["B-ORG"]'}]) == ([[(0, 2, "ORG")]], [])
    assert marked([{"text": "EU rejects", "entities": "B-ORG O"}], "text") == ([[(0, 2, "ORG")]], [])


@pytest.mark.parametrize(
    "span",
    [
        {"start": 3, "end": 8, "label": "LOC"},
        {"start": 3, "end": 8, "entity_group": "LOC", "text": "Paris", "score": 0.9},
        {"start": 3, "end": 8, "labels": ["LOC"]},
        [3, 8, "LOC"],
    ],
    ids=["plain", "pipeline", "label-studio", "doccano"],
)
def test_spans_are_read_in_the_common_forms(span: Any) -> None:
    assert marked([{"text": "In Paris.", "entities": json.dumps([span])}], "text") == ([[(3, 8, "LOC")]], [])


def test_spans_with_white_space_are_trimmed_and_those_inside_words_are_told() -> None:
    spans = [{"start": 2, "end": 9, "label": "LOC"}, {"start": 11, "end": 14, "label": "PER"}]
    rows, flaws = marked([{"text": "In Paris  Annabel", "entities": json.dumps(spans)}], "text")
    assert rows == [[(3, 8, "LOC"), (11, 14, "PER")]]
    assert sorted(flaws) == ["span-inside-word", "span-white-space"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tokens": ["a", "b"], "entities": ["O"]}, "expected as many tags as words, got 1 for 2 words"),
        ({"tokens": ["a"], "entities": ["PER"]}, "got 'PER' at word 1"),
        ({"tokens": ["a"], "entities": [3]}, "Write the tags' names, not their numbers."),
        (
            {"tokens": ["a", ""], "entities": ["O", "O"]},
            "expected words of at least one character, got nothing at word 2",
        ),
        ({"tokens": [], "entities": []}, "expected a list of words, got no words"),
        ({"tokens": ["a"], "entities": None}, "expected tags or spans, got nothing"),
    ],
    ids=["lengths", "tag", "number", "empty-word", "no-words", "no-tags"],
)
def test_bad_words_and_tags_are_named(row: dict[str, Any], told: str) -> None:
    said = problem(row)
    assert told in said
    assert "x.jsonl, row 7" in said


@pytest.mark.parametrize(
    ("span", "told"),
    [
        (
            {"start": 3, "end": 99, "label": "LOC"},
            "a span inside the text's 9 characters, got 3 to 99",
        ),
        ({"start": 5, "end": 5, "label": "LOC"}, "got 5 to 5"),
        ({"start": 3, "end": 8, "label": "LOC", "text": "Rome"}, "at its place, got 'Paris' there instead of 'Rome'"),
        ({"start": 3, "end": 8}, 'expected spans such as {"start": 0, "end": 5, "label": "PER"}'),
        ({"start": 2, "end": 3, "label": "LOC"}, "expected a span with text, got only white space, 2 to 3"),
        ("Paris", "a list of tags, or of spans"),
    ],
    ids=["outside", "empty", "text", "no-label", "white", "no-list"],
)
def test_bad_spans_are_named(span: Any, told: str) -> None:
    cell = json.dumps([span]) if not isinstance(span, str) else span
    said = problem({"text": "In Paris.", "entities": cell}, "text")
    assert told in said
    assert "x.jsonl, row 7, field 'entities'" in said


def test_spans_that_overlap_are_refused() -> None:
    spans = [[0, 8, "LOC"], [3, 8, "PER"]]
    said = problem({"text": "In Paris.", "entities": json.dumps(spans)}, "text")
    assert "expected entities that do not overlap, got 'LOC' and 'PER', which share character 4" in said


def test_entities_give_each_row_its_types() -> None:
    values = Entities(("PER", "LOC"), Spans.of([[(0, 2, 1), (3, 4, 0)], [], [(0, 1, 1), (1, 2, 1)]]))
    labels = labels_of(values)
    assert labels is not None
    assert [labels.sets[code] for code in labels.codes] == [("LOC", "PER"), (), ("LOC",)]
    assert values.count() == {"PER": 1, "LOC": 3}
    assert values[np.array([2, 0])].count() == {"PER": 1, "LOC": 3}


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), max_size=3), max_size=8))
def test_spans_can_be_taken_and_joined(rows: list[list[tuple[int, int, int]]]) -> None:
    spans = Spans.of(rows)
    assert list(spans.each()) == rows
    order = np.arange(len(rows))[::-1]
    assert list(spans[order].each()) == rows[::-1]
    whole = together([spans, spans[order]])
    assert isinstance(whole, Spans)
    assert list(whole.each()) == [*rows, *rows[::-1]]


CONLL = """-DOCSTART- -X- O O

EU NNP B-ORG
rejects VBZ O

李 B-PER
开 I-PER
# O
"""


def loaded(path: Path, **data: Any) -> Dataset:
    return load(path, Data(**data), TASK)


def test_conll_files_are_read_sentence_by_sentence(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text(CONLL * 12, encoding="utf-8")
    dataset = loaded(path)
    rows = [row for split in dataset.splits.values() for row in split.inputs["tokens"]]
    assert set(rows) == {'["EU", "rejects"]', '["李", "开", "#"]'}
    assert dataset.labels == ("ORG", "PER")
    places = dataset.splits["train"].places
    assert places.lines is not None
    assert set((places.lines - 3) % 8) <= {0, 3}


def test_a_broken_line_of_a_conll_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.bio"
    path.write_text("EU B-ORG\nrejects\n\nParis B-LOC\n", encoding="utf-8")
    report = loaded(path).report
    assert not report.ok
    assert f"{path}, row 1, line 2: expected a word and its tag, got 'rejects'" in str(report.problems[0])


def test_cleaning_that_moves_characters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text(CONLL * 12, encoding="utf-8")
    with pytest.raises(DataError, match="Texts with marked pieces cannot be cleaned") as caught:
        loaded(path, clean=Clean(white_space=True))
    assert "data.clean.white_space" in str(caught.value)


def test_a_type_that_train_never_shows_is_named(tmp_path: Path) -> None:
    for name, tag in (("train", "PER"), ("validation", "LOC")):
        (tmp_path / f"{name}.conll").write_text(f"Ann B-{tag}\n\nruns O\n\n", encoding="utf-8")
    report = loaded(tmp_path).report
    assert [finding.kind for finding in report.findings if finding.severity == "error"] == ["unknown-label"]
    assert "expected a label that was in train: PER, got 'LOC'" in str(report.problems[0])


def test_words_and_a_text_side_by_side_are_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"text": "Ann runs", "tokens": ["Ann", "runs"], "tags": ["B-PER", "O"]}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        loaded(path)
    assert "expected either one text or one tokens, got both" in str(caught.value)
    assert loaded(path, fields={"tokens": "tokens"}).fields == {"tokens": "tokens", "entities": "tags"}
