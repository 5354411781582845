"""Reading: every format, and the message of every file that cannot be read."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.data.read import Reading, read
from chainrule.data.stream import stream
from chainrule.data.texts import Texts
from chainrule.errors import DataError

pytestmark = pytest.mark.unit

ROWS = "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(6))


def file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def failure(source: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(source, on_bad_row="stop")
    assert raised.value.exit_code == 2
    return "\n".join(str(problem) for problem in raised.value.problems)


def flaws(reading: Reading) -> dict[str, tuple[int, ...]]:
    return {found.kind: found.rows for found in reading.findings}


def cells(source: Any, column: str = "text") -> Texts:
    return read(source, on_bad_row="stop").tables["all"].texts(column)


def test_files_that_cannot_be_read_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "text,label\n" + ROWS
    cases: dict[str, tuple[str | bytes | None, str]] = {
        "missing.csv": (
            None,
            "missing.csv: expected a file, a folder, a catalog name or a hub name, got nothing at that path. ",
        ),
        "empty.csv": ("", "empty.csv: expected a line of column names and rows below it, got an empty file. "),
        "blank.csv": ("\n\n", "blank.csv: expected a line of column names and rows below it, got an empty file. "),
        "header.csv": ("text,label\n", "header.csv: expected at least one row, got only a header ('text', 'label'). "),
        "wide.csv": (text.encode("utf-16"), "wide.csv: expected UTF-8 text, got UTF-16 text. Save the file as UTF-8, "),
        "wide_no_mark.csv": (text.encode("utf-16-le"), "wide_no_mark.csv: expected UTF-8 text, got UTF-16 text. "),
        "wider.csv": (text.encode("utf-32"), "wider.csv: expected UTF-8 text, got UTF-32 text. "),
        "wide.jsonl": ('{"text": "abc"}'.encode("utf-16"), "wide.jsonl: expected UTF-8 text, got UTF-16 text. "),
        "twice.csv": (
            "text,label,text\n1,2,3\n",
            "twice.csv, line 1: expected different column names, got 'text' more than once among 'text', 'label', ",
        ),
        "nameless.csv": (
            ",,\n1,2,3\n",
            "nameless.csv, line 1: expected column names in the first line, got only empty names. ",
        ),
        "chinese.csv": (
            "文本,标签\n好,正\n".encode("gbk"),
            "chinese.csv, line 1: expected UTF-8 text, got the bytes ce c4 b1 be at position 1, which are not UTF-8 "
            "(it looks like GB18030). Save the file as UTF-8, for example: iconv -f GB18030 -t UTF-8 OLD > NEW",
        ),
        "object.json": ('{"text": ["a"]}', "object.json: expected a JSON array of objects"),
        "broken.json": ('[{"text": 1},', "got broken JSON (Expecting value, column 14). Write an array of objects"),
        "empty.json": ("", "got an empty file. Write an array of objects"),
        "empty.jsonl": ("", "empty.jsonl: expected rows, got an empty file. "),
        "no.parquet": ("hello", "no.parquet: expected a Parquet file, got a file that cannot be read as one"),
        "sheet.xlsx": (
            "PK",
            "sheet.xlsx: expected a file that ends in one of .csv, .tsv, .jsonl, .json, .parquet, .conll, got ",
        ),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            file(tmp_path, name, content)
        assert message in failure(name)
    assert "expected an ordinary file, got a device or a pipe" in failure("/dev/null")
    assert "expected a path, got File name too long" in failure("x" * 5000)
    assert "expected a path, a DataFrame, a Dataset, or a dict of those by split, got int" in failure(5)


def test_a_folder_needs_split_files(tmp_path: Path) -> None:
    assert "got no data files. Rename the files, or give the path of one file" in failure(tmp_path)
    file(tmp_path, "reviews.csv", "text,label\n" + ROWS)
    assert "expected a folder with train, validation and test files" in failure(tmp_path)
    assert "got only reviews.csv" in failure(tmp_path)
    file(tmp_path, "train.csv", "text,label\n" + ROWS)
    reading = read(tmp_path, on_bad_row="stop")
    assert list(reading.tables) == ["train"]
    assert (
        reading.findings[0].message == "Not read, because their names are not train, validation or test: reviews.csv."
    )
    file(tmp_path, "Dev.tsv", "text\tlabel\nx\ty\n")
    assert list(read(tmp_path, on_bad_row="stop").tables) == ["train", "validation"]
    file(tmp_path, "val.csv", "text,label\n" + ROWS)
    assert "expected one file for each split, got Dev.tsv, val.csv" in failure(tmp_path)


def test_all_broken_files_of_a_folder_are_told_at_once(tmp_path: Path) -> None:
    file(tmp_path, "train.csv", "")
    file(tmp_path, "test.csv", "text,label\n")
    message = failure(tmp_path)
    assert "train.csv: expected a line of column names" in message
    assert "test.csv: expected at least one row" in message


def test_shards_of_one_split_are_read_together(tmp_path: Path) -> None:
    for number in range(2):
        pd.DataFrame({"text": [f"t{number}"], "label": [number]}).to_parquet(
            tmp_path / f"train-0000{number}-of-00002.parquet"
        )
    assert read(tmp_path, on_bad_row="stop").tables["train"].texts("text") == ["t0", "t1"]


def test_cells_are_text_and_stay_text(tmp_path: Path) -> None:
    values = ["NA", "nan", "null", "007", "1.0", "true", "", " x "]
    source = file(tmp_path, "a.csv", "text,label\n" + "".join(f"{value},a\n" for value in values))
    assert cells(source) == values


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_and_the_byte_order_mark_do_not_matter(tmp_path: Path, ending: str) -> None:
    content = ('text,label\n"two\nlines",a\n' + ROWS).replace("\n", ending)
    table = read(file(tmp_path, "a.csv", b"\xef\xbb\xbf" + content.encode()), on_bad_row="stop").tables["all"]
    assert table.names == ["text", "label"]
    assert table.texts("text")[:2] == [f"two{ending}lines", "text 0"]
    assert table.where(1, "text").row == 2
    assert table.where(1, "text").line == 4


def test_ragged_rows_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    source = file(tmp_path, "a.csv", "text,label\n" + ROWS + "a,b,c\nalone\n")
    reading = read(source, on_bad_row="stop")
    assert flaws(reading) == {"ragged-row": (7, 8)}
    assert str(reading.problems[0]) == (
        f"{source}, row 7, line 8: expected 2 cells as in the header (text, label), got 3: 'a | b | c'. "
        "Put quotes around cells that hold the separator, or add the missing cells."
    )
    skipped = read(source, on_bad_row="skip")
    assert skipped.problems == ()
    assert skipped.findings[0].message == "2 rows were skipped: they have more or fewer cells than the header."
    assert skipped.findings[0].rows == (7, 8)
    assert len(skipped.tables["all"]) == 6


def test_a_lone_quote_costs_its_own_row_only(tmp_path: Path) -> None:
    source = file(tmp_path, "a.csv", 'text,label\n"he said,a\n' + ROWS)
    reading = read(source, on_bad_row="stop")
    assert flaws(reading) == {"broken-quote": (1,)}
    assert len(reading.tables["all"]) == 6
    assert str(reading.problems[0]) == (
        f"{source}, row 1, line 2: expected a closing quote for the quoted cell that starts here, followed by a "
        "separator or a new line, got none up to the end of the file at line 8. "
        'Write a quote inside a quoted cell twice (""), or remove the lone quote.'
    )
    other = file(tmp_path, "b.csv", 'text,label\n"he said" so,a\n' + ROWS)
    assert "got text straight after a closing quote in line 2" in str(read(other, on_bad_row="stop").problems[0])


def test_a_quote_that_swallowed_rows_is_suspected(tmp_path: Path) -> None:
    source = file(tmp_path, "a.csv", 'text,label\n"oops,a\nx,b\ny,a\nz,b",a\n' + ROWS)
    assert flaws(read(source, on_bad_row="stop")) == {"swallowed-rows": (1,)}


def test_a_tsv_may_have_quotes_that_mean_nothing(tmp_path: Path) -> None:
    source = file(tmp_path, "a.tsv", 'text\tlabel\n"Why?" she asked\ta\n"quoted\tcell"\tb\n')
    assert cells(source) == ['"Why?" she asked', "quoted\tcell"]
    assert flaws(read(source, on_bad_row="stop")) == {"literal-quotes": (1,)}


def test_a_huge_cell_is_read_and_the_csv_module_is_left_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    source = file(tmp_path, "a.csv", "text,label\n" + "x" * 10_000_000 + ",a\n")
    assert len(cells(source)[0] or "") == 10_000_000
    assert csv.field_size_limit() == before


def test_rows_that_are_not_utf8_are_named_with_a_guess(tmp_path: Path) -> None:
    source = file(
        tmp_path, "a.csv", b"text,label\n" + "café au lait,a\n".encode("latin-1") + "这个酒店很好,a\n".encode("gbk")
    )
    reading = read(source, on_bad_row="stop")
    assert flaws(reading) == {"wrong-encoding": (1, 2)}
    assert "row 1, line 2, field 'text': expected UTF-8 text, got the bytes e9 20 61 75 at position 4" in str(
        reading.problems[0]
    )
    assert "it looks like WINDOWS-1252" in reading.problems[0].got
    assert "it looks like GB18030" in reading.problems[1].got


def test_an_unnamed_column_gets_a_name(tmp_path: Path) -> None:
    table = read(file(tmp_path, "a.csv", ",text\n0,a\n"), on_bad_row="stop").tables["all"]
    assert table.names == ["unnamed_1", "text"]


def test_json_lines_keep_going_past_broken_ones(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": 1}',
        '{"text": ',
        "[1, 2]",
        "",
        "7",
        '{"text": "a", "text": "b"}',
        r'{"text": "\ud800", "label": 1}',
        '{"label": true, "extra": {"deep": [1]}}',
        "[" * 100_000,
        '{"text": "\\u4f60\\u597d", "label": "x"}',
    ]
    source = file(tmp_path, "a.jsonl", "\n".join(lines) + "\n")
    reading = read(source, on_bad_row="stop")
    table = reading.tables["all"]
    assert flaws(reading) == {"broken-json": (2, 3, 4, 5, 8), "blank-line": (4,), "wrong-encoding": (6,)}
    assert table.texts("text") == ["a", None, "你好"]
    assert table.texts("label") == ["1", "true", "x"]
    assert table.rows.tolist() == [1, 7, 9]
    got = [problem.got for problem in reading.problems]
    assert got[0] == "'{\"text\":' (Expecting value, character 11)"
    assert got[1] == "an array: '[1, 2]'"
    assert got[2] == "a number: '7'"
    assert "the key 'text' stands twice in one object" in got[3]
    assert "nested too deeply" in got[4]
    assert got[5] == r"half of a surrogate pair, such as \ud83d without its second half"
    assert reading.problems[1].where.line == 3


def test_json_arrays_and_json_lines_by_the_wrong_name(tmp_path: Path) -> None:
    objects = [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}, {"text": "c"}]
    array = file(tmp_path, "a.json", json.dumps(objects))
    lines = file(tmp_path, "b.json", "\n".join(json.dumps(item) for item in objects))
    assert cells(array, "label") == cells(lines, "label") == ["1", "2.5", None]
    assert read(file(tmp_path, "c.json", '[{"text": "a"}, 3]'), on_bad_row="stop").problems[0].where.row == 2


def test_parquet_keeps_its_types_and_unfolds_categories(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", None], "label": pd.Categorical(["x", "y"]), "score": [1, 2]})
    frame.to_parquet(tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet", on_bad_row="stop").tables["all"]
    assert table.texts("text") == ["a", None]
    assert table.texts("label") == ["x", "y"]
    assert pa.types.is_integer(table.columns.column("score").type)


def test_frames_are_read_like_files() -> None:
    frame = pd.DataFrame({"text": ["a", None, "c"], "label": [1, 0, None]})
    table = read(frame, on_bad_row="stop").tables["all"]
    assert table.texts("text") == ["a", None, "c"]
    assert table.texts("label") == ["1", "0", None]
    odd = pd.DataFrame({"text": ["a", "\ud800", "c"], "label": ["1", 2.5, True]}, dtype=object)
    reading = read({"train": odd, "dev": frame}, on_bad_row="stop")
    assert list(reading.tables) == ["train", "validation"]
    assert reading.tables["train"].texts("label") == ["1", "true"]
    assert str(reading.problems[0].where) == "DataFrame, row 2, field 'text'"
    assert "'text' more than once" in failure(pd.DataFrame([[1, 2]], columns=["text", "text"]))
    assert read(frame, on_bad_row="stop").fingerprint == read(frame.copy(), on_bad_row="stop").fingerprint


def test_datasets_are_read_with_the_names_of_their_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    classes = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": classes, "tags": datasets.List(classes)})
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}
    dataset = datasets.Dataset.from_dict(rows, features=features).select([2, 1, 0])
    table = read(dataset, on_bad_row="stop").tables["all"]
    assert table.texts("text") == ["c", "b", "a"]
    assert table.texts("label") == [None, "bad", "good"]
    assert table.columns.column("tags").to_pylist() == [["good"], [], ["bad", "good"]]
    splits = datasets.DatasetDict({"train": dataset, "valid": dataset})
    assert list(read(splits, on_bad_row="stop").tables) == ["train", "validation"]
    splits.save_to_disk(tmp_path / "saved")
    assert list(read(tmp_path / "saved", on_bad_row="stop").tables) == ["train", "validation"]
    assert "got a streaming dataset" in failure(dataset.to_iterable_dataset())


def test_streaming_gives_the_same_rows_in_pieces(tmp_path: Path) -> None:
    source = file(tmp_path, "a.csv", "text,label\n" + "".join(f"t{number},a\n" for number in range(10)))
    pieces = list(stream(source, 4))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert [text for piece in pieces for text in piece.texts("text")] == cells(source)
    assert pieces[2].where(1).row == 10
    broken = file(tmp_path, "b.csv", "text,label\na,b\nc\n")
    with pytest.raises(DataError, match="has rows that cannot be read"):
        list(stream(broken, 4))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_whatever_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ending: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as target:
        csv.writer(target, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    reading = read(path, on_bad_row="stop")
    table = reading.tables["all"]
    assert reading.problems == ()
    assert list(zip(table.texts("text"), table.texts("label"), strict=True)) == rows
    assert [text for piece in stream(path, 3) for text in piece.texts("text")] == [text for text, _ in rows]


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_readers(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("raw")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"):
        (folder / name).write_bytes(raw)
        with suppress(DataError):  # anything else is a crash
            reading = read(folder / name, on_bad_row="stop")
            skipped = read(folder / name, on_bad_row="skip")
            assert skipped.problems == ()
            assert reading.tables["all"].rows.tolist() == skipped.tables["all"].rows.tolist()
