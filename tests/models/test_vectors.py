"""Word vectors in the text formats of GloVe and word2vec, and what is wrong with broken files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from chainrule.errors import ModelError
from chainrule.models.vectors import MAX_LINE, read_vectors

pytestmark = pytest.mark.unit

PLACES = {"the": 5, "电影": 7, "of a": 8, "7": 9, "absent": 10}


def written(folder: Path, content: bytes | str) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "the 1 -2.5 3e-1\nother 0 0 0\n电影 .5 0 1\n",
        "the 1 -2.5 3e-1\r\nother 0 0 0\r\n电影 .5 0 1",
        "3 3\nthe 1 -2.5 3e-1 \nother 0 0 0 \n电影 .5 0 1 \n",
        "the 1 -2.5 3e-1\n电影 .5 0 1\nthe 9 9 9\n. . . 1 1 1\n",
    ],
)
def test_both_formats_and_the_first_of_two(content: str, tmp_path: Path) -> None:
    places, vectors = read_vectors(written(tmp_path, content), PLACES)
    assert places.tolist() == [5, 7]
    np.testing.assert_array_equal(vectors, np.array([[1, -2.5, 0.3], [0.5, 0, 1]], np.float32))


def test_words_with_spaces_and_words_that_are_numbers(tmp_path: Path) -> None:
    places, vectors = read_vectors(written(tmp_path, "of a 1 2\n7 3 4\n. . 5 6\n"), PLACES)
    assert places.tolist() == [8, 9]
    assert vectors.tolist() == [[1, 2], [3, 4]]


def test_none_found(tmp_path: Path) -> None:
    places, vectors = read_vectors(written(tmp_path, "x 1 2\n"), PLACES)
    assert (places.shape, vectors.shape) == ((0,), (0, 2))


BINARY = b"1 300\nthe " + np.linspace(-0.5, 0.5, 300).astype(np.float32).tobytes() + b"\n"
BROKEN: dict[str, tuple[bytes | str, str, str]] = {
    "too few": ("a 1 2\nthe 1\n", "line 2", "expected a word and 2 numbers, as in the first line, got 1: 'the 1'"),
    "too many": ("a 1 2\nb 1 2 3\n", "line 2", "expected a word and 2 numbers, as in the first line, got 3: 'b 1 2 3'"),
    "empty line": ("a 1 2\n\nb 1 2\n", "line 2", "expected a word and 2 numbers, as in the first line, got 0: ''"),
    "no number": ("2 2\na 1 2\nthe 1 x\n", "line 3", "expected numbers, finite in float32, got 'x'. Correct this line"),
    "not finite": ("a 1 2\nthe nan 1\n", "line 2", "expected numbers, finite in float32, got 'nan'"),
    "too large": ("a 1 2\nthe 1 1e39\n", "line 2", "expected numbers, finite in float32, got '1e39'"),
    "cut off": ("3 2\na 1 2\nb 1 2\n", "", "expected 3 words, as its first line says, got 2. Take a copy"),
    "no words": ("3 2\n", "", "expected 3 words, as its first line says, got 0"),
    "prose": ("no vectors here\n", "line 1", "expected a word and its numbers, at most 4,096, got 'no vectors here'"),
    "nothing": ("", "line 1", "expected a word and its numbers, at most 4,096, got ''"),
    "too wide": ("5 999999\n", "line 1", "expected a word and its numbers, at most 4,096, got '5 999999'"),
    "endless": ("a 1\n" + "x" * MAX_LINE, "line 2", "expected a line of less than 1,048,576 bytes, got a longer one"),
    "word2vec binary": (BINARY, "", "expected word vectors as text, got a binary file. Unpack it, or save it as text"),
    "packed": (gzip.compress(b"the 1 2\n"), "", "expected word vectors as text, got a binary file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_told_with_its_line(kind: str, tmp_path: Path) -> None:
    content, line, told = BROKEN[kind]
    path = written(tmp_path, content)
    with pytest.raises(ModelError) as caught:
        read_vectors(path, PLACES)
    assert caught.value.message == "The word vectors cannot be read."
    place = f"{path}, {line}, field" if line else f"{path}, field"
    assert str(caught.value.problems[0]).startswith(f"{place} 'model.options.vectors': {told}")


def test_no_file(tmp_path: Path) -> None:
    for path, got in ((tmp_path / "none.txt", "got no such file"), (tmp_path, "got Is a directory")):
        with pytest.raises(ModelError, match=got):
            read_vectors(path, PLACES)
