"""Word vectors from a text file: word2vec's format with its first line of sizes, or GloVe's without."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from chainrule.errors import ModelError, Problem, Where

MAX_LINE = 2**20  # bytes
MAX_SIZE = 4096  # numbers of a word
FIELD = "model.options.vectors"

_OTHER_FILE = "Give vectors in the text format of GloVe or of word2vec."
_BROKEN_LINE = "Correct this line, or leave it out."
_HEADER = re.compile(rb"(\d{1,12}) (\d{1,6})")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # in no text, but always in some kilobytes of binary numbers
_LARGEST = float(np.finfo(np.float32).max)
_NUMBER = re.compile(rb"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def read_vectors(path: Path, places: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of some words, read line by line: only theirs are kept.

    Lines of words that are not asked for are checked for the number of their values alone. Of a word that comes twice
    the first vector counts.

    Args:
        path: lines of a word and its numbers, a space between each two; a word may hold spaces.
        places: word -> its place in a vocabulary.

    Returns:
        The places of the words that were found (n,) int64, in the file's order, and their vectors (n, size) float32.

    Raises:
        ModelError: the file cannot be read, is not text, or has a line that is no word with as many finite numbers as
            the first.
    """
    wanted = {word.encode(): place for word, place in places.items()}
    found: dict[int, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            count, size = _sizes(file, path)
            above = 0 if count is None else 1
            number = above
            for number, line in enumerate(_lines(file, path, above + 1), start=above + 1):
                word, _, rest = line.partition(b" ")
                if rest.count(b" ") != size - 1:
                    word, rest = _apart(line, size, Where(file=str(path), line=number, field=FIELD))
                place = wanted.get(word)
                if place is not None and place not in found:
                    found[place] = _numbers(rest, Where(file=str(path), line=number, field=FIELD))
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise _unreadable("a file of word vectors", got, _OTHER_FILE, Where(file=str(path), field=FIELD)) from None
    if count is not None and number - above != count:
        expected, got = f"{count:,} words, as its first line says", f"{number - above:,}"
        raise _unreadable(expected, got, "Take a copy of the file that is whole.", Where(file=str(path), field=FIELD))
    vectors = np.stack(list(found.values())) if found else np.zeros((0, size), np.float32)
    return np.array(list(found), np.int64), vectors


def _sizes(file: BinaryIO, path: Path) -> tuple[int | None, int]:
    """The number of words, where the first line says it, and of a word's numbers; the file then stands at a word."""
    where = Where(file=str(path), line=1, field=FIELD)
    start = file.read(4096)
    if _CONTROL.search(start):
        todo = "Unpack it, or save it as text: word2vec's own tool does so with -binary 0."
        raise _unreadable("word vectors as text", "a binary file", todo, Where(file=str(path), field=FIELD))
    file.seek(0)
    line = next(_lines(file, path, 1), b"")
    header = _HEADER.fullmatch(line)
    size = int(header[2]) if header else sum(1 for _ in takewhile(_NUMBER.fullmatch, reversed(line.split(b" ")[1:])))
    if not 0 < size <= MAX_SIZE:
        raise _unreadable(f"a word and its numbers, at most {MAX_SIZE:,}", _shown(line), _OTHER_FILE, where)
    if header is None:
        file.seek(0)
    return int(header[1]) if header else None, size


def _lines(file: BinaryIO, path: Path, first: int) -> Iterator[bytes]:
    """The lines from here on, without their ends.

    Args:
        first: the number of the next one.
    """
    number = first
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            expected, where = f"a line of less than {MAX_LINE:,} bytes", Where(file=str(path), line=number, field=FIELD)
            raise _unreadable(expected, "a longer one", _OTHER_FILE, where)
        yield line.rstrip(b" \r\n")
        number += 1


def _apart(line: bytes, size: int, where: Where) -> tuple[bytes, bytes]:
    """A word that may hold spaces, and its numbers."""
    values = line.rsplit(b" ", size)
    if len(values) <= size or not values[0] or _NUMBER.fullmatch(values[0].rpartition(b" ")[2]):
        got = f"{line.count(b' '):,}: {_shown(line)}"
        raise _unreadable(f"a word and {size:,} numbers, as in the first line", got, _BROKEN_LINE, where)
    return values[0], line[len(values[0]) + 1 :]


def _numbers(values: bytes, where: Where) -> np.ndarray:
    parts = values.split(b" ")
    wrong = next((part for part in parts if not _NUMBER.fullmatch(part) or abs(float(part)) > _LARGEST), None)
    if wrong is not None:
        raise _unreadable("numbers, finite in float32", _shown(wrong), _BROKEN_LINE, where)
    return np.array([float(part) for part in parts], np.float32)


def _shown(line: bytes) -> str:
    text = repr(line[:80].decode("utf-8", "replace"))
    return text + ("…" if len(line) > 80 else "")


def _unreadable(expected: str, got: str, todo: str, where: Where) -> ModelError:
    return ModelError("The word vectors cannot be read.", [Problem(expected, got, todo, where)])
