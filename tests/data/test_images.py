"""Images as rows: where they are found, what of them is refused, what is noticed."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import chainrule
from chainrule.errors import DataError
from chainrule.system.images import UnreadableImageError, examine_image, image_size, open_image
from chainrule.testing.data import stripes, write_csv

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("images"), 40)


def check(source: object, **settings: object) -> chainrule.core.report.CheckReport:
    return chainrule.check(source, task="image-classification", settings=settings)


def test_paths_count_from_the_folder_of_their_file(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check(str(labels))
    assert report.ok
    assert report.fields == {"image": "image", "label": "label"}
    assert report.labels == ("across", "down")
    assert {finding.kind for finding in report.findings} <= {"imbalance"}
    monkeypatch.chdir(labels.parent)
    assert check("labels.csv").ok


def test_every_image_that_cannot_be_read_is_named(labels: Path, tmp_path: Path) -> None:
    shutil.copytree(labels.parent, tmp_path / "images")
    folder = tmp_path / "images"
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:120])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    lines = ["text.png,down", "cut.png,down", "missing.png,down", ",down", "deep.png,down", "data:image/png,x,down"]
    with (folder / "labels.csv").open("a") as file:
        file.write("\n".join(lines[:5]) + "\n" + '"data:image/png,x",down\n')
    report = check(str(folder / "labels.csv"))
    assert not report.ok
    told = [(problem.where.row, problem.got) for problem in report.problems]
    assert told == [
        (41, "not an image ('text.png')"),
        (42, "a damaged image: image file is truncated ('cut.png')"),
        (43, "No such file or directory ('missing.png')"),
        (44, "nothing"),
        (45, "an image with more than 8 bits a colour (mode I;16) ('deep.png')"),
        (46, "a data URI that is not base64"),
    ]
    assert {problem.todo for problem in report.problems} == {"Correct the path or the image, or remove this row."}
    skipped = check(str(folder / "labels.csv"), **{"data.on_bad_row": "skip"})
    assert skipped.ok
    assert sum(split.rows for split in skipped.splits.values()) == 40


def test_a_folder_for_each_class_and_for_each_split(labels: Path, tmp_path: Path) -> None:
    for split, numbers in (("train", range(20)), ("val", range(20, 30)), ("test", range(30, 40))):
        for number in numbers:
            place = tmp_path / "sets" / split / ("even" if number % 2 else "odd")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(labels.parent / f"{number}.png", place)
    report = check(tmp_path / "sets")
    assert {name: split.rows for name, split in report.splits.items()} == {"train": 20, "validation": 10, "test": 10}
    assert report.labels == ("even", "odd")
    whole = check(tmp_path / "sets" / "train")
    assert sum(split.rows for split in whole.splits.values()) == 20
    assert whole.cut is not None


def test_bytes_and_data_uris_are_images_too(labels: Path, tmp_path: Path) -> None:
    cells = [(labels.parent / f"{number}.png").read_bytes() for number in range(20)]
    names = ["a", "b"] * 10
    rows = [{"image": {"bytes": cell, "path": None}, "label": name} for cell, name in zip(cells, names, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub.parquet")
    uris = [f"data:image/png;base64,{base64.b64encode(cell).decode()}" for cell in cells]
    write_csv(tmp_path / "uris.csv", [{"image": uri, "label": name} for uri, name in zip(uris, names, strict=True)])
    for source in ("hub.parquet", "uris.csv"):
        assert check(tmp_path / source).ok
    assert image_size(uris[0]) == (16, 16)
    assert open_image(uris[0]).tobytes() == open_image(str(labels.parent / "0.png")).tobytes()
    with pytest.raises(UnreadableImageError, match="broken base64"):
        open_image("data:image/png;base64,%%")


def test_what_is_noticed(labels: Path, tmp_path: Path) -> None:
    shutil.copytree(labels.parent, tmp_path / "images")
    folder = tmp_path / "images"
    Image.new("RGB", (40, 20), (9, 9, 9)).save(folder / "blank.png")
    shutil.copy(folder / "0.png", folder / "again.png")
    with (folder / "labels.csv").open("a") as file:
        file.write("blank.png,down\nagain.png,neither\nagain.png,neither\n")
    found = {finding.kind: finding for finding in check(str(folder / "labels.csv")).findings}
    assert found["blank-image"].message == "1 row has an image of a single colour."
    assert found["blank-image"].rows == (41,)
    assert found["image-sizes"].message == (
        "The images are of 2 sizes, from 16 × 16 to 40 × 20 pixels, 16 × 16 in the middle: all are resized."
    )
    assert "share 1 image with different labels" in found["conflicting-labels"].message


def test_cleaning_of_texts_is_refused(labels: Path) -> None:
    with pytest.raises(DataError, match="Images cannot be cleaned") as caught:
        check(str(labels), **{"data.clean.html": True})
    assert caught.value.problems[0].where.field == "data.clean.html"


def test_images_stand_upright_and_have_three_colours(tmp_path: Path) -> None:
    wide = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide.save(tmp_path / "turned.png", exif=exif)
    turned = open_image(str(tmp_path / "turned.png"))
    assert (turned.mode, turned.size) == ("RGB", (2, 4))
    facts = examine_image(str(tmp_path / "turned.png"))
    assert (facts.width, facts.height, facts.blank) == (4, 2, False)
