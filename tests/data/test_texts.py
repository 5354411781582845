"""Columns of texts on Arrow, and tables that are put together from pieces: the same in memory and in a mapped file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.data import read as reading
from chainrule.data import texts as columns
from chainrule.data.read import read
from chainrule.data.table import Table, concatenate
from chainrule.data.targets import Labels
from chainrule.data.texts import Texts, stored
from chainrule.system import spill

pytestmark = pytest.mark.unit

TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=8), max_size=30)


@pytest.fixture(autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens at a few rows and bytes."""
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(spill, "MEMORY_BYTES", 300)
    monkeypatch.setattr(columns, "CHUNK_ROWS", 4)
    monkeypatch.setattr(reading, "_CHUNK", 3)


@settings(deadline=None)
@given(TEXTS, st.data())
def test_a_column_is_a_list_that_lies_elsewhere(plain: list[str | None], data: st.DataObject) -> None:
    texts = Texts.of(plain)
    assert len(texts) == len(plain)
    assert list(texts) == texts.to_list() == plain
    assert texts == plain
    places = data.draw(st.lists(st.integers(0, max(len(plain) - 1, 0)), max_size=20 if plain else 0))
    some, expected = texts[np.array(places, dtype=np.int64)], [plain[place] for place in places]
    assert some == expected
    assert [some[index] for index in range(len(some))] == expected
    cut = data.draw(st.slices(max(len(some), 1)))
    assert some[cut] == expected[cut]
    assert texts[cut] == plain[cut]
    assert some[::-1][np.arange(len(some))] == expected[::-1]


def test_columns_differ_from_what_holds_other_texts() -> None:
    assert Texts.of(["a", None]) != ["a"]
    assert Texts.of(["a", None]) != ["a", ""]
    assert Texts.of(["a"]) != 5


def test_large_tables_are_mapped_and_the_same() -> None:
    before = pa.total_allocated_bytes()
    tables = [pa.table({"a": ["x" * 1000] * 100, "b": np.arange(100)}) for _ in range(30)]
    done = stored(tables)
    assert done == tables
    del tables
    assert pa.total_allocated_bytes() - before < 10_000


def pieces(*parts: dict[str, list[Any]]) -> list[Table]:
    """Tables of one file, rows counted on."""
    made, first = [], 1
    for part in parts:
        count = len(next(iter(part.values()), [0, 0]))
        made.append(Table("a.jsonl", pa.table(part), np.arange(first, first + count), np.arange(first, first + count)))
        first += count
    return made


def test_pieces_with_other_columns_and_types_fit_together() -> None:
    table = concatenate(
        pieces(
            {"text": ["a", "b"], "label": [1, 2], "tags": [["x"], []]},
            {"text": ["c"], "label": [2.5], "late": [{"deep": [1]}]},
            {},
            {"label": ["z"], "text": [None], "tags": [["y", "x"]]},
        )
    )
    assert table.names == ["text", "label", "tags", "late"]
    assert table.texts("text") == ["a", "b", "c", None, None, None]
    assert table.texts("label") == ["1", "2", "2.5", None, None, "z"]
    assert table.columns.column("tags").to_pylist() == [["x"], [], None, None, None, ["y", "x"]]
    assert table.texts("late") == [None, None, '{"deep": [1]}', None, None, None]
    assert table.rows.tolist() == list(range(1, 7))
    assert table.where(5).line == 6


CELLS = st.none() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text("ab1", max_size=3)
OBJECTS = st.dictionaries(st.sampled_from("abc"), CELLS | st.lists(st.text("xy", max_size=2), max_size=2), max_size=3)


@settings(deadline=None, max_examples=50)
@given(st.lists(OBJECTS, min_size=1, max_size=12))
def test_how_a_file_is_read_in_pieces_does_not_show(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = {}
    for size in (1, 3, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_CHUNK", size)
            table = read(path).tables["all"]
        assert len(table) == len(rows)
        whole[size] = {name: list(table.texts(name)) for name in table.names}
    assert whole[1] == whole[3] == whole[100]
    assert list(whole[1]) == list(whole[100])


def test_labels_are_held_once() -> None:
    labels = Labels.of([("a",), None, ("a", "b"), ("a",), ()])
    assert labels.sets == (("a",), ("a", "b"), ())
    some = labels[np.array([3, 2, 0])]
    assert [some.sets[code] for code in some.codes] == [("a",), ("a", "b"), ("a",)]
    assert some.count() == {"a": 3, "b": 1}
    assert labels[np.array([4])].sets == ((),)


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    texts = Texts.of(["x" * 100] * 50)
    assert list(tmp_path.iterdir()) == []
    assert texts[49] == "x" * 100
