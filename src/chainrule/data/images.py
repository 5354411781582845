"""Rows with images: a column of paths, data URIs or bytes, or folders that are named like the classes inside."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chainrule.core.report import Finding
from chainrule.data.flaws import Flaw, agree, count_rows, finding, shorten
from chainrule.data.table import Table
from chainrule.data.texts import Texts, values_of
from chainrule.errors import Problem
from chainrule.system.images import (
    IMAGE_ENDINGS,
    ImageFacts,
    UnreadableImageError,
    data_uri,
    examine_image,
    is_data_uri,
)

IMAGE, LABEL = "image", "label"


@dataclass(frozen=True)
class Images:
    """The images of a table's rows, each decoded once and let go.

    Attributes:
        inputs: (n,) a path from here, or a data URI; empty where there is none.
        digests: (n,) of the bytes of each; what makes two images the same.
        findings: what was noticed about those that can be read.
    """

    inputs: Texts
    digests: Texts
    flaws: list[Flaw]
    findings: list[Finding]


def read_images(table: Table, field: str, column: str, split: str | None) -> Images:
    """Find and decode every image of a column; a row whose image cannot be read is a flaw."""
    cells, digests, flaws = list[str](), list[str](), list[Flaw]()
    facts: list[ImageFacts | None] = []
    for index, cell in enumerate(_cells(table, column)):
        digests.append("")
        facts.append(None)
        cells.append(located_image(cell, table.file))
        try:
            if not cell.strip():
                raise UnreadableImageError("nothing")
            found = examine_image(cells[index])
        except UnreadableImageError as error:
            name = "" if is_data_uri(cell) or not cell.strip() else f" ({shorten(cell)})"
            todo = "Correct the path or the image, or remove this row."
            expected = "an image, as a path from the folder of this file or as a data URI"
            problem = Problem(expected, f"{error}{name}", todo, table.where(index, field))
            flaws.append(Flaw("bad-image", int(table.rows[index]), problem))
            continue
        digests[index], facts[index] = found.digest, found
    return Images(Texts.of(cells), Texts.of(digests), flaws, _findings(table, facts, split))


def located_image(cell: str, file: str | None) -> str:
    """The path of an image from here, where the cell names it from the folder of its file; a data URI as it is."""
    return cell if is_data_uri(cell) or file is None else os.path.join(Path(file).parent, cell)  # noqa: PTH118


def image_splits(folder: Path, shown: str, names: dict[str, str]) -> dict[str, tuple[Table, list[Flaw], str]]:
    """The images of a folder as rows, by split; nothing where it does not hold images in folders by class.

    FOLDER/CLASS/… or FOLDER/SPLIT/CLASS/…, as torchvision's ImageFolder and Hugging Face's imagefolder have it.

    Args:
        names: what a folder of a split may be called -> the split.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = {names[path.name.lower()]: path for path in inside if path.name.lower() in names}
    found = {
        split: _labelled(path, os.path.join(shown, path.name))  # noqa: PTH118  (as the user wrote it)
        for split, path in splits.items()
    }
    if "train" in found and all(len(table) for table, _, _ in found.values()):
        return found
    whole = _labelled(folder, shown)
    return {"all": whole} if len(whole[0]) else {}


def image_rows(path: Path, shown: str) -> Table:
    """An image, or all images of a folder and of those in it, as rows without labels."""
    files = [path] if path.is_file() else sorted(_images_in(path))
    return _table(shown, {IMAGE: [_named_from(file, path, shown) for file in files]}, len(files))


def is_image(path: Path) -> bool:
    """Whether a name ends like that of an image."""
    return path.suffix.lower() in IMAGE_ENDINGS


def _labelled(folder: Path, shown: str) -> tuple[Table, list[Flaw], str]:
    """The images of each folder in a folder, labelled with its name; with a hash over names and contents."""
    files = [
        (file, label.name)
        for label in sorted(folder.iterdir())
        if label.is_dir() and not label.name.startswith(".")
        for file in sorted(_images_in(label))
    ]
    digest = hashlib.sha256()
    for file, label in files:
        digest.update(f"{label}\0{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    columns = {IMAGE: [_named_from(file, folder, shown) for file, _ in files], LABEL: [label for _, label in files]}
    return _table(shown, columns, len(files)), [], digest.hexdigest()


def _named_from(file: Path, folder: Path, shown: str) -> str:
    """A file inside a folder, from the folder's own parent on."""
    inside = file.relative_to(folder).as_posix()
    return Path(shown).name if inside == "." else f"{Path(shown).name}/{inside}"


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if is_image(path) and path.is_file())


def _table(shown: str, columns: dict[str, list[str]], rows: int) -> Table:
    arrays = {name: pa.array(cells, pa.string()) for name, cells in columns.items()}
    return Table(shown, pa.table(arrays), np.arange(1, rows + 1))


def _cells(table: Table, column: str) -> Iterator[str]:
    """Each cell as a text; of one with the bytes of a file, as the hub's image sets have them, a data URI."""
    cells = table.columns.column(column)
    if pa.types.is_struct(cells.type):
        for value in values_of(cells):
            yield _of_struct(value)
    elif pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        for value in values_of(cells):
            yield data_uri(value) if value else ""
    else:
        for text in table.texts(column):
            yield text or ""


def _of_struct(value: Any) -> str:
    if not value:
        return ""
    return data_uri(value["bytes"]) if value.get("bytes") else str(value.get("path") or "")


def _findings(table: Table, facts: Sequence[ImageFacts | None], split: str | None) -> list[Finding]:
    read = [found for found in facts if found is not None]
    if not read:
        return []
    where: dict[str, Any] = {"split": split, "file": table.file}
    sizes = np.array([(found.width, found.height) for found in read])
    told = []
    if (sizes != sizes[0]).any():
        (low, high), middle = ((f"{w:,} × {h:,}" for w, h in (sizes.min(0), sizes.max(0))), np.median(sizes, 0))
        message = f"The images {'of ' + split if split else ''} are of {len(np.unique(sizes, axis=0)):,} sizes".replace(
            "  ", " "
        )
        message += f", from {low} to {high} pixels, {middle[0]:,.0f} × {middle[1]:,.0f} in the middle: all are resized."
        told.append(finding("image-sizes", "info", message, **where))
    blank = np.array([found is not None and found.blank for found in facts])
    if blank.any():
        count = int(blank.sum())
        message = f"{count_rows(count, split)} {agree(count, 'have')} an image of a single colour."
        todo = "There is nothing to see in it: check where it comes from."
        told.append(finding("blank-image", "warning", message, todo=todo, rows=table.rows[blank], **where))
    return told
