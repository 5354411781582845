"""Data that was made to do harm, or went wrong in the worst way: such a file is read, or refused with a place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chainrule.core.recipe import Data
from chainrule.core.report import CheckReport
from chainrule.data.flaws import MAX_COLUMNS
from chainrule.data.load import load
from chainrule.data.read import read
from chainrule.data.stream import load_inputs
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit
MILLION = 10**6
ROWS = 8


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def lines(objects: Sequence[Any]) -> str:
    return "".join(json.dumps(item) + "\n" for item in objects)


def checked(source: Any, task: str = "text-classification") -> CheckReport:
    report = load(source, Data(on_bad_row="stop"), find_task(task)).report
    assert json.dumps(report.as_dict(), ensure_ascii=False).encode("utf-8")
    return report


def refused(source: Any, task: str = "text-classification") -> str:
    with pytest.raises(DataError) as raised:
        load(source, Data(on_bad_row="stop"), find_task(task)).require_ok()
    return "\n".join(str(problem) for problem in raised.value.problems)


def test_a_cell_of_ten_million_characters(tmp_path: Path) -> None:
    long = "x" * 10_000_000
    table = read(write(tmp_path, "a.csv", f"text,label\n{long},a\nshort,b\n")).tables["all"]
    assert [len(text or "") for text in table.texts("text")] == [10_000_000, 5]
    row = write(tmp_path, "a.jsonl", lines([{"messages": long}]))
    assert "row 1, line 1, field 'messages': expected a list of messages" in refused(row, "text-generation")


def test_control_characters_are_text_and_nul_bytes_are_not(tmp_path: Path) -> None:
    others = [chr(code) for code in (*range(1, 10), *range(11, 13), *range(14, 32), 0x7F, 0x85, 0x2028)]
    rows = "".join(f"a{mark}{place},{'xy'[place % 2]}\n" for place, mark in enumerate(others))
    assert checked(write(tmp_path, "a.csv", "text,label\n" + rows)).ok
    nul = write(tmp_path, "b.csv", "text,label\n" + "a,x\n" * ROWS + "b\0c,x\nd,\0\n")
    assert "b.csv, row 9, line 10, field 'text': expected text, got a NUL byte at character 2." in refused(nul)
    assert "b.csv, row 10, line 11, field 'label': expected a label, got NUL bytes in it." in refused(nul)
    assert "line 1: expected column names in the first line, got NUL bytes" in refused(
        write(tmp_path, "c.csv", "te\0xt,label\na,b\n")
    )


def test_half_of_a_surrogate_pair_is_refused_wherever_it_hides(tmp_path: Path) -> None:
    half = '"\\ud800"'
    plain = write(tmp_path, "a.jsonl", f'{{"text": {half}, "label": "a"}}\n' * 3)
    assert "a.jsonl, row 1, line 1: expected text that can be written as UTF-8, got half of a" in refused(plain)
    array = write(tmp_path, "a.json", f'[{{"text": "a", "label": [{{"b": {half}}}]}}]')
    assert "a.json, row 1: expected text that can be written as UTF-8" in refused(array)
    talk = [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "b"}]
    inside = write(tmp_path, "b.jsonl", lines([{"messages": json.dumps(talk)}]))
    told = refused(inside, "text-generation")
    assert "b.jsonl, row 1, line 1, field 'messages': expected text that can be written as UTF-8" in told
    labels = write(tmp_path, "b.csv", "text,labels\n" + 'a,"[""\\ud800""]"\n' * 3)
    assert "b.csv, row 1, line 2, field 'labels': expected a list of labels, got '[\"\\\\ud800\"]', which has half" in (
        refused(labels, "multi-label-classification")
    )


def test_other_encodings_are_named(tmp_path: Path) -> None:
    chinese = "文本,标签\n" + "酒店很好,正面\n" * ROWS
    assert "expected UTF-8 text, got UTF-16 text." in refused(
        write(tmp_path, "a.csv", ("text,label\n" + "a,b\n" * 9).encode("utf-16-le"))
    )
    assert "line 1: expected UTF-8 text" in refused(write(tmp_path, "b.csv", chinese.encode("gbk")))
    assert "it looks like GB18030" in refused(write(tmp_path, "c.json", f'[{{"text": "{chinese[:3]}"}}]'.encode("gbk")))
    assert "it looks like GB18030" in refused(
        write(tmp_path, "d.jsonl", f'{{"text": "{chinese[:3]}"}}\n'.encode("gbk"))
    )


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_million_columns_are_refused_at_once(tmp_path: Path, name: str, separator: str) -> None:
    names = separator.join(f"c{number}" for number in range(MILLION))
    told = refused(write(tmp_path, name, names + "\n" + separator.join("1" * MILLION) + "\n"))
    assert f"line 1: expected at most {MAX_COLUMNS:,} columns, got 1,000,000: 'c0', 'c1', 'c2', …. Correct" in told


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_hundred_thousand_keys_are_refused_at_once(tmp_path: Path, name: str) -> None:
    item = json.dumps({f"c{number}": 1 for number in range(100_000)})
    told = refused(write(tmp_path, name, item if name == "a.jsonl" else f"[{item}]"))
    assert f"{name}: expected at most {MAX_COLUMNS:,} columns, got 100,000: 'c0', 'c1', 'c2', …. Give every" in told


def test_columns_of_one_name(tmp_path: Path) -> None:
    content = ",".join(f"c{number // 2}" for number in range(200_000)) + "\n1\n"
    told = refused(write(tmp_path, "a.csv", content))
    assert "a.csv, line 1: expected different column names, got 'c0', 'c1', 'c2', " in told
    assert len(told) < 1_000
    text = pa.array(["a"])
    pq.write_table(pa.table([text, text], names=["text", "text"]), tmp_path / "a.parquet")
    for reading in (read, lambda path: load_inputs(path, find_task("text-classification"))):
        with pytest.raises(DataError, match="'text' more than once among 'text', 'text'"):
            reading(tmp_path / "a.parquet")
    keys = "{" + ",".join(f'"c{number}":1' for number in range(100_000)) + ',"c99999":2}\n'
    assert "the key 'c99999' stands twice in one object" in refused(write(tmp_path, "a.jsonl", keys))


def test_ever_new_keys_do_not_fill_the_memory(tmp_path: Path) -> None:
    content = lines([{f"c{row}_{place}": 1 for place in range(2)} for row in range(4_900)])
    told = refused(write(tmp_path, "a.jsonl", content))
    assert "a.jsonl: expected objects that share their keys, got 9,800 keys in 4,900 objects, of which most" in told


@pytest.mark.parametrize("depth", [101, 500, 950, 100_000])
@pytest.mark.parametrize("marks", ["[]", "{}"])
def test_deep_nesting_is_refused_row_by_row(tmp_path: Path, depth: int, marks: str) -> None:
    opening, closing = ('{"a":', "}") if marks == "{}" else ("[", "]")
    deep = opening * depth + "1" + closing * depth
    rows = ['{"text": "a", "label": "b"}'] * ROWS
    path = write(tmp_path, "a.jsonl", "\n".join([*rows, f'{{"text": "c", "label": {deep}}}']))
    assert "a.jsonl, row 9, line 9: expected a JSON object" in refused(path)
    array = write(tmp_path, "a.json", f'[{",".join(rows)}, {{"text": "c", "label": {deep}}}]')
    assert "deep" in refused(array)
    talk = write(tmp_path, "b.jsonl", lines([{"messages": f'[{{"role": "user", "content": {deep}}}]'}]))
    assert "b.jsonl, row 1, line 1, field 'messages': expected a list of messages" in refused(talk, "text-generation")
    cell = '"' + deep.replace('"', '""') + '"'
    labels = write(tmp_path, "a.csv", "text,labels\n" + "x,a\n" * ROWS + f"y,{cell}\n")
    if marks == "[]":
        assert "a.csv, row 9, line 10, field 'labels': expected" in refused(labels, "multi-label-classification")


def test_numbers_as_text_and_text_as_numbers(tmp_path: Path) -> None:
    rows = [{"text": 1, "label": 2}, {"text": 1.5, "label": "2"}, {"text": True, "label": 2.0}] * 4
    assert checked(write(tmp_path, "a.jsonl", lines(rows))).labels == ("2",)
    huge = write(tmp_path, "b.jsonl", f'{{"text": "a", "label": {"9" * 4_000}}}\n' * ROWS)
    assert checked(huge).labels == ("9" * 4_000,)
    larger = write(tmp_path, "c.jsonl", f'{{"text": "a", "label": {"9" * 5_000}}}\n' * ROWS)
    assert "c.jsonl, row 1, line 1: expected a JSON object" in refused(larger)


@pytest.mark.parametrize(
    "value", ["NaN", "nan", "Infinity", "-inf", "1e999", "-3.5e38", "١", "0x10", "1_000", "1,5", "--1"]
)
def test_targets_that_are_no_number(tmp_path: Path, value: str) -> None:
    rows = "".join(f"t{number},{number}\n" for number in range(ROWS))
    told = refused(write(tmp_path, "a.csv", f'text,score\n{rows}x,"{value}"\n'), "regression")
    assert f"a.csv, row 9, line 10, field 'score': expected a finite number, got {value!r}." in told


def test_targets_at_the_ends_of_the_numbers_are_cut_all_the_same(tmp_path: Path) -> None:
    rows = "".join(f"t{number},{'-' if number % 2 else ''}3.4e38\n" for number in range(40))
    assert checked(write(tmp_path, "a.csv", "text,score\n" + rows), "regression").splits["train"].rows > 20


@pytest.mark.parametrize("role", [["user"], {"a": 1}, 7, None, True, "wizard"])
def test_roles_that_are_no_role(tmp_path: Path, role: Any) -> None:
    talk = [{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}]
    told = refused(write(tmp_path, "a.jsonl", lines([{"messages": talk}] * 3)), "text-generation")
    assert "a.jsonl, row 1, line 1, field 'messages': expected a role of message 1: user, human" in told


def out_of_range() -> dict[str, tuple[pa.Array, int]]:
    """Arrow columns with a cell that Python cannot hold, and its row."""
    text = pa.py_buffer(np.array([0, 1, 2, 4], np.int32).tobytes()), pa.py_buffer(b"ab\xff\xfe")
    return {
        "text that is no UTF-8": (pa.Array.from_buffers(pa.string(), 3, [None, *text]), 3),
        "a moment after the calendar": (pa.array([0, 1, 2**62], pa.timestamp("us")), 3),
        "a time zone of nowhere": (pa.array([0, 1, 2], pa.timestamp("us", "Mars/Phobos")), 1),
        "a day after the calendar": (pa.array([0, 2**30, 1], pa.int32()).cast(pa.date32()), 2),
        "a duration too long": (pa.array([0, 2**62, 1], pa.duration("s")), 2),
        "a list with such a day": (
            pa.array([[0], [1, 2**30], []], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
            2,
        ),
    }


@pytest.mark.parametrize("what", out_of_range())
def test_cells_that_cannot_be_read_are_named(tmp_path: Path, what: str) -> None:
    column, row = out_of_range()[what]
    table = pa.table({"text": ["a", "b", "c"], "label": column})
    pq.write_table(table, tmp_path / "a.parquet")
    for source, shown in ((tmp_path / "a.parquet", "a.parquet"), (table, "Table")):
        assert f"{shown}, row {row}, field 'label': expected a value of the type " in refused(source)
    with pytest.raises(DataError, match="has cells that cannot be read"):
        load_inputs(tmp_path / "a.parquet", find_task("text-classification"))


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), tmp_path / "a.parquet", store_schema=False)
    raw = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(raw.replace(b"label", b"lab\xff\xfe"))
    assert "a.parquet: expected a Parquet file, got a file that cannot be read as one ('utf-8' codec" in refused(
        tmp_path / "a.parquet"
    )


def test_frames_that_arrow_cannot_hold() -> None:
    huge = pd.DataFrame({"text": ["a", "b"], "label": [10**30, 10**5_000]})
    assert "DataFrame: expected columns that Arrow can hold, got Exceeds the limit" in refused(huge)


def test_shards_of_other_types_are_text(tmp_path: Path) -> None:
    for number, label in enumerate([[1], [["a"]]]):
        pd.DataFrame({"text": ["a"], "label": label}).to_parquet(tmp_path / f"train-{number}-of-2.parquet")
    labels = read(tmp_path).tables["train"].columns.column("label")
    assert labels.to_pylist() == ["1", '["a"]']


def test_rows_that_are_all_unreadable_are_named_and_not_their_columns(tmp_path: Path) -> None:
    told = refused(write(tmp_path, "a.jsonl", "7\nnull\n"))
    assert "a.jsonl, row 1, line 1: expected a JSON object such as" in told
    assert "column" not in told
