"""CoNLL files: a word a line with its tag in the last column, an empty line after each sentence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from chainrule.data.encodings import decode_lines, encoding_problem
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.table import Table
from chainrule.errors import Problem, Where

NAMES = ("tokens", "tags")
_DOCUMENT = "-DOCSTART-"

_Sentence = tuple[int, list[str], list[str], "Flaw | None"]  # first line, words, tags, why it cannot be used


def read_conll(path: Path, shown: str, chunk_rows: int) -> Iterator[tuple[Table, list[Flaw]]]:
    """Yield tables of up to `chunk_rows` sentences, with the columns `tokens` and `tags`, and the flaws met on the way.

    Cells are separated by tabs, or else by white space. Lines that begin with "# " and hold no tag, as CoNLL-U has
    them, and -DOCSTART- lines are left out.
    """
    with path.open("rb") as file:
        sentences = enumerate(_sentences(decode_lines(file, shown), shown), start=1)
        while batch := list(islice(sentences, chunk_rows)):
            good = [(row, line, words, tags) for row, (line, words, tags, flaw) in batch if flaw is None]
            columns = [pa.array([item[place] for item in good], pa.list_(pa.string())) for place in (2, 3)]
            rows, lines = (np.array([item[place] for item in good], np.int64) for place in (0, 1))
            flaws = [flaw for _, (_, _, _, flaw) in batch if flaw is not None]
            yield Table(shown, pa.table(columns, names=list(NAMES)), rows, lines), flaws


def _sentences(lines: Iterator[tuple[str, bytes | None]], shown: str) -> Iterator[_Sentence]:
    """Sentences in order; a broken line makes its whole sentence unusable."""
    row, first = 1, 0
    words: list[str] = []
    tags: list[str] = []
    flaw: Flaw | None = None
    for number, (text, damaged) in enumerate(lines, start=1):
        line = text.rstrip("\r\n")
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == _DOCUMENT:
            if words or flaw:
                yield first, words, tags, flaw
                row, words, tags, flaw = row + 1, [], [], None
            continue
        if cells[0] == "#" and not words and len(cells) != 2:
            continue
        first = first if words or flaw else number
        where = Where(file=shown, row=row, line=number)
        if damaged is not None:
            flaw = flaw or Flaw("wrong-encoding", row, encoding_problem(where, damaged))
        elif len(cells) < 2 or not cells[0] or not cells[-1]:
            todo = "Write a word, its tag, and a space or a tab between them."
            flaw = flaw or Flaw("bad-entities", row, Problem("a word and its tag", shorten(line), todo, where))
        else:
            words.append(cells[0])
            tags.append(cells[-1])
    if words or flaw:
        yield first, words, tags, flaw
