"""Changed copies of texts, of which a student can ask its teachers: no label has to stay right.

Tang et al. (2019), Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, section 3.3: words masked,
words in the place of others, and short spans alone. Here a masked word is left out, since a teacher need not know a
mask, and what takes a word's place is any word of the training rows, as often as it stands there, not one of the same
part of speech, for which a tagger would be needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from chainrule.core.scripts import UNSPACED

LEFT_OUT, REPLACED, SPAN = 0.1, 0.1, 0.25  # probabilities: of a word, of a word, of a text
LONGEST_SPAN = 5
_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+|[^\w\s]")


def variants_of(columns: Mapping[str, Sequence[str]], count: int, seed: int) -> dict[str, list[str]]:
    """`count` changed copies of each row, all copies of the first row first.

    Of rows of several texts one of them is changed in each copy, chosen by chance.

    Args:
        columns: the texts of the rows by field.
        seed: decides every draw.
    """
    draw = np.random.default_rng(seed)
    pool = [word for texts in columns.values() for text in texts for word in _WORD.findall(text)]
    made: dict[str, list[str]] = {name: [] for name in columns}
    if not pool:
        return made
    for row in zip(*columns.values(), strict=True):
        for _ in range(count):
            changed = int(draw.integers(len(row)))
            for place, (name, text) in enumerate(zip(columns, row, strict=True)):
                made[name].append(_variant(text, pool, draw) if place == changed else text)
    return made


def _variant(text: str, pool: Sequence[str], draw: np.random.Generator) -> str:
    words = list(_spaced(text))
    chances = draw.random(len(words))
    kept = []
    for chance, (space, word) in zip(chances, words, strict=True):
        if chance < LEFT_OUT:
            continue
        kept.append((space, pool[int(draw.integers(len(pool)))] if chance < LEFT_OUT + REPLACED else word))
    if kept and draw.random() < SPAN:
        length = min(len(kept), int(draw.integers(1, LONGEST_SPAN + 1)))
        start = int(draw.integers(len(kept) - length + 1))
        kept = kept[start : start + length]
    return "".join(space + word for space, word in kept).strip() or text


def _spaced(text: str) -> Iterator[tuple[str, str]]:
    """The words of a text, and what stands before each."""
    end = 0
    for found in _WORD.finditer(text):
        yield text[end : found.start()], found[0]
        end = found.end()
