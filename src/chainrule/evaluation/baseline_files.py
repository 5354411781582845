"""Reading stored baselines: nothing in the files is run, and sizes are checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation import ngrams
from chainrule.system.files import read_json

_LARGEST = 1e300  # NaN is not below it, and any whole number below it is a float
FORMAT_VERSION = 1
TEXT, ARRAYS = "baselines.json", "baselines.safetensors"


def constant_name(kind: str) -> str:
    """The constant baseline's name for a kind of target: "mean" for numbers, otherwise "majority"."""
    return "mean" if kind == "number" else "majority"


def _shapes(text: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    words, characters, outputs, constants = (
        len(text["words"]), len(text["characters"]), text["outputs"], text["constants"]
    )  # fmt: skip
    features = ngrams.width(words + characters, len(text["fields"]))
    return {
        "constant": ((constants,), "float64"),
        "shares": ((constants,), "float64"),
        "word_idf": ((words,), "float32"),
        "character_idf": ((characters,), "float32"),
        "coefficients": ((outputs, features), "float32"),
        "intercepts": ((outputs,), "float32"),
    }


def read_text(path: Path) -> dict[str, Any]:
    """The checked content of `baselines.json`.

    Raises:
        ModelError: it is missing, too large, not JSON, or a value is not what it should be.
    """
    text = {"sample": None, **read_json(path)}  # older files are of all rows
    for key, (fits, expected) in _FIELDS.items():
        if key not in text or not fits(text[key]):
            raise _broken(path, expected, "nothing" if key not in text else repr(text[key])[:80], key)
    if text["best"] not in (constant_name(text["kind"]), "tfidf"):
        raise _broken(path, "the name of a baseline", repr(text["best"])[:80], "best")
    constants = text["outputs"] if text["kind"] == "classes" else 1
    if text["constants"] != constants:
        raise _broken(path, str(constants), str(text["constants"]), "constants")
    return text


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _sample(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)


def _size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 1_000_000


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format_version": (lambda value: value == FORMAT_VERSION, f"format version {FORMAT_VERSION}"),
    "kind": (lambda value: value in ("class", "classes", "number"), "class, classes or number"),
    "fields": (lambda value: _names(value) and len(value) in (1, 2), "one or two names of fields"),
    "best": (lambda value: isinstance(value, str), "the name of a baseline"),
    "strength": (_finite, "a number"),
    "scores": (lambda value: isinstance(value, dict) and all(map(_finite, value.values())), "numbers by name"),
    "sample": (lambda value: value is None or _sample(value), "a number of rows and that of all rows"),
    "outputs": (_size, "a number of outputs"),
    "constants": (_size, "a number of constants"),
    "words": (_names, "a list of different texts"),
    "characters": (_names, "a list of different texts"),
}


def read_arrays(path: Path, text: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `baselines.safetensors`, of the shapes that `text` (from `read_text`) asks for.

    Raises:
        ModelError: the file is missing, too large, broken, or an array does not fit.
    """
    shapes = _shapes(text)
    room = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes.values()) + 10_000
    try:
        size = path.stat().st_size
        if size > room:
            raise _broken(path, f"at most {room:,} bytes for the sizes in {TEXT}", f"{size:,} bytes")
        arrays: dict[str, np.ndarray] = load_file(path)
    except OSError as error:
        raise _broken(path, "a file that can be read", error.strerror or str(error)) from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # numpy has not all types of numbers
        raise _broken(path, "a safetensors file", str(error)[:200]) from error
    for name, (shape, kind) in shapes.items():
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != kind or not np.isfinite(found).all():
            got = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise _broken(path, f"{kind} {shape}, all finite", got, name)
    constant = arrays["constant"]
    classes = 1 if text["kind"] == "classes" else max(1, text["outputs"] - 1)
    if text["kind"] != "number" and not np.isin(constant, np.arange(classes + 1)).all():
        raise _broken(path, f"whole numbers from 0 to {classes}", repr(constant.tolist())[:80], "constant")
    return arrays


def _broken(path: Path, expected: str, got: str, field: str | None = None) -> ModelError:
    problem = Problem(
        where=Where(file=str(path), field=field),
        expected=expected,
        got=got,
        todo="Train the run again, or take a copy of it that is whole.",
    )
    return ModelError(f"Cannot read the baselines in {path.parent}.", [problem])
