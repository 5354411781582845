"""The data of the catalog, as they come from the package index. What is checked here are counts, not sentences."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from chainrule.data.catalog import DATASETS, dataset_file, label_of, list_datasets
from chainrule.errors import AssetError
from chainrule.testing.catalog import fetched

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "rows", "repeated", "labels"),
    [
        ("sentiment/movies", 10_605, 2, {"negative": 5_061, "neutral": 562, "positive": 4_982}),
        ("sentiment/amazon", 3_708, 11, {"negative": 1_218, "neutral": 765, "positive": 1_725}),
        ("sentiment/tweets", 4_200, 0, {"negative": 1_062, "neutral": 838, "positive": 2_300}),
        ("sentiment/nyt", 5_190, 71, {"negative": 1_688, "neutral": 2_402, "positive": 1_100}),
    ],
)
def test_the_sentiment_sets_are_whole(name: str, rows: int, repeated: int, labels: dict[str, int]) -> None:
    file = fetched(dataset_file, name)
    content = file.read_bytes()
    assert b"\r" not in content
    assert not content.startswith(b"\xef\xbb\xbf")
    with file.open(encoding="utf-8", newline="") as lines:
        table = list(csv.DictReader(lines, strict=True))
    assert len(table) == rows == DATASETS[name].rows
    assert list(table[0]) == ["id", "text", "label", "score"]
    assert Counter(row["label"] for row in table) == labels
    assert all(-4 <= float(row["score"]) <= 4 and label_of(float(row["score"])) == row["label"] for row in table)
    assert len({row["id"] for row in table}) == rows
    assert rows - len({row["text"] for row in table}) == repeated
    assert all(row["text"].strip() for row in table)
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


def test_techsupport_is_whole_and_full_of_repeats() -> None:
    file = fetched(dataset_file, "techsupport")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1_050
    assert all(set(row) == {"prompt", "completion"} and row["prompt"] and row["completion"] for row in rows)
    assert len({(row["prompt"], row["completion"]) for row in rows}) == 10
    assert len({row["prompt"] for row in rows}) == 10


@pytest.mark.parametrize(
    ("rating", "label"),
    [
        (-4.0, "negative"),
        (-0.51, "negative"),
        (-0.5, "neutral"),
        (0.0, "neutral"),
        (0.5, "neutral"),
        (0.51, "positive"),
    ],
)
def test_the_rule_that_makes_classes(rating: float, label: str) -> None:
    assert label_of(rating) == label


def test_a_name_that_is_not_in_the_catalog() -> None:
    assert dataset_file("sentiment/none") is None
    assert dataset_file("data.csv") is None


def test_the_rows_of_show_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    rows = list_datasets()
    assert sum(row["rows"] for row in rows if row["name"].startswith("sentiment/")) == 23_703
    assert not any(row["cached"] for row in rows)
    assert list(tmp_path.iterdir()) == []
    json.dumps(rows)


def test_without_a_network_the_message_names_the_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    monkeypatch.setenv("CHAINRULE_OFFLINE", "1")
    with pytest.raises(AssetError, match="Cannot fetch 'sentiment/nyt'"):
        dataset_file("sentiment/nyt")
