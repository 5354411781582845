"""Folders that vouch for themselves: a JSON document holds the SHA-256 of every other file, and of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainrule.system.files import sha256


class BrokenSealError(Exception):
    """A file of the folder is missing, torn or altered; the text says which and how."""


def seal(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write `values` as the document `name` beside the files that it vouches for."""
    document = {"files": {file.name: sha256(file) for file in folder.iterdir()}, **values}
    text = json.dumps(document | {"sha256": _digest(document)}, allow_nan=True)
    (folder / name).write_text(text, encoding="utf-8")


def unsealed(folder: Path, name: str) -> dict[str, Any]:
    """The document `name`, once it and every file that it vouches for were found whole.

    Raises:
        BrokenSealError: they are not.
    """
    try:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        if document.pop("sha256") != _digest(document):
            raise BrokenSealError(f"{folder.name}/{name} was altered")
        for file, wanted in document["files"].items():
            if sha256(folder / file) != wanted:
                raise BrokenSealError(f"{folder.name}/{file} is damaged")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BrokenSealError(f"{folder.name} is incomplete: {error}") from error
    return dict(document)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
