"""Scores of texts that a model has written, against one or several references a row. All are shares from 0 to 1.

    rouge1, rouge2, rougeL   the mean over rows of the F1 of common words, of pairs of words, and of the longest common
                             subsequence (Lin, 2004), each with the reference it is highest for.
    bleu                     of the whole, sacreBLEU's (Post, 2018): up to four words, exponential smoothing.
    chrf                     of the whole, sacreBLEU's chrF2 (Popović, 2015): up to six characters.
    exact_match              the share of rows that are a reference, but for white space at the ends.
    stop_rate                the share of rows that the model ended by itself.
    length                   the mean number of tokens written, which alone is no share.

Words of ROUGE are runs of letters and digits in lower case, and each Chinese or Japanese character by itself; of a text
that has nothing else, punctuation is kept. (The package rouge-score drops all that is not ASCII, and takes two seconds
to be imported; tests compare with it.) BLEU's words are sacreBLEU's own: of its `zh` tokenizer where references are
mostly Chinese, single characters where they are Japanese, and of `13a` otherwise. Thai, Lao, Khmer and Burmese, which
have no spaces either, are best judged by chrf.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from chainrule.core.spans import ALONE
from chainrule.metrics.answers import split_words

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = (*ROUGE, "bleu", "chrf", "exact_match", "stop_rate", "length")
ORDERS, CHARACTERS, BETA = 4, 6, 2  # of BLEU; of chrF, with the weight of its recall
_SAME, _STOPPED, _LENGTH = 3, 4, 5  # columns of a tally, after those of ROUGE
_BLEU = slice(6, 8 + 2 * ORDERS)
_CHRF = slice(_BLEU.stop, _BLEU.stop + 3 * CHARACTERS)
_ALONE = re.compile(f"[{ALONE}]")
_KANA = re.compile("[\u3041-\u30ff]")


@dataclass(frozen=True)
class Written:
    """What was written for n rows.

    Attributes:
        texts: (n,).
        tokens: (n,) how many tokens each has, without the one that ends it.
        finished: (n,) whether the end was written, too; None for texts that no model has written.
    """

    texts: Sequence[str]
    tokens: np.ndarray
    finished: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)


def tally(references: Sequence[Sequence[str]], written: Written) -> np.ndarray:
    """What each row adds to the sums that scores are made of: (n, columns) float64.

    Args:
        references: (n,) one or more texts each.

    Raises:
        ValueError: no rows, lengths that differ, or a row without a reference.
    """
    if not len(written) or len(references) != len(written) or not all(references):
        raise ValueError(f"{len(written)} texts for {len(references)} rows, each of which needs a reference")
    finished = np.full(len(written), np.nan) if written.finished is None else written.finished
    rows = zip(references, written.texts, strict=True)
    words = [[*_rouge(right, text), text.strip() in {each.strip() for each in right}] for right, text in rows]
    most = max(map(len, references))
    streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    parts = [
        measure._extract_corpus_statistics(list(written.texts), streams)  # its sums, row by row
        for measure in (BLEU(tokenize=_tokenizer(references)), CHRF(char_order=CHARACTERS, beta=BETA))
    ]
    return np.column_stack([np.array(words, np.float64), finished, written.tokens, *map(np.array, parts)])


def weighted(targets: object, tallies: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores for each of r weightings of the rows.

    Args:
        targets: not asked; `tallies` hold what they say.
        tallies: (n, columns) of `tally`.
        weights: (r, n), how often each row counts.

    Returns:
        name -> (r,), in the order of NAMES; without stop_rate for texts that no model has written.
    """
    rows, sums = weights.sum(axis=1), weights @ np.nan_to_num(tallies)
    found = {name: sums[:, column] / rows for column, name in enumerate(ROUGE)}
    found |= {"bleu": _bleu(sums[:, _BLEU]), "chrf": _chrf(sums[:, _CHRF]), "exact_match": sums[:, _SAME] / rows}
    if not np.isnan(tallies[:, _STOPPED]).any():
        found["stop_rate"] = sums[:, _STOPPED] / rows
    return {**found, "length": sums[:, _LENGTH] / rows}


def measure(tallies: np.ndarray) -> dict[str, float]:
    """The scores of all rows, each counted once."""
    return {name: float(value[0]) for name, value in weighted(None, tallies, np.ones((1, len(tallies)))).items()}


def words_of(text: str) -> list[str]:
    """The words of a text that ROUGE compares."""
    lower = text.lower()
    plain = "".join(letter if _is_of_a_word(letter) else " " for letter in lower)
    return split_words(plain) or split_words(lower)


@lru_cache(1 << 16)
def _is_of_a_word(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter).startswith("M")  # marks on letters, as of Hindi vowels


def _rouge(references: Sequence[str], text: str) -> list[float]:
    """(3,) of ROUGE, each with the best reference."""
    said = words_of(text)
    each = [_overlaps(words_of(reference), said) for reference in references]
    return [max(scores) for scores in zip(*each, strict=True)]


def _overlaps(right: Sequence[str], said: Sequence[str]) -> tuple[float, float, float]:
    single = (Counter(right) & Counter(said)).total()
    double = (Counter(pairwise(right)) & Counter(pairwise(said))).total()
    return (
        _f1(single, len(right) + len(said)),
        _f1(double, max(len(right) - 1, 0) + max(len(said) - 1, 0)),
        _f1(_longest_common(right, said), len(right) + len(said)),
    )


def _f1(common: int, both: int) -> float:
    return 2 * common / both if both else 0.0


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at once as the bits of a number.

    Hyyrö (2004), Bit-parallel LCS-length computation revisited.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = row = (1 << len(first)) - 1
    for word in second:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & every
    return len(first) - row.bit_count()


def _tokenizer(references: Sequence[Sequence[str]]) -> str:
    """sacreBLEU's name for what tells the words of these texts apart."""
    texts = [text for row in references for text in row]
    alone = sum(len(_ALONE.findall(text)) for text in texts)
    if 2 * alone <= sum(sum(map(str.isalnum, text)) for text in texts):
        return "13a"
    return "char" if any(_KANA.search(text) for text in texts) else "zh"


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Papineni et al. (2002) of sums (r, 2 + 8): lengths of text and closest reference, n-grams in common and in all.

    An order without anything in common counts as half of one n-gram, the next such as a quarter, and so on.
    """
    said, right, common, every = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + ORDERS], sums[:, 2 + ORDERS :]
    missing = np.cumsum(common == 0, axis=1)
    counts = np.where(common > 0, common, 0.5**missing)
    precision = np.exp(np.log(counts / np.maximum(every, 1)).mean(axis=1))
    brevity = np.exp(np.minimum(0.0, 1 - right / np.maximum(said, 1)))
    return np.where((every > 0).all(axis=1) & (common > 0).any(axis=1), precision * brevity, 0.0)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """Popović (2015) of sums (r, 18): for each order the n-grams of the text, of the reference, and in common."""
    said, right, common = (sums[:, place::3] for place in range(3))
    known = (said > 0) & (right > 0)
    orders = np.maximum(known.sum(axis=1), 1)
    precision, recall = (
        np.divide(common, all_of, out=np.zeros_like(common), where=known).sum(axis=1) / orders
        for all_of in (said, right)
    )
    both = BETA**2 * precision + recall
    found: np.ndarray = np.divide((1 + BETA**2) * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return found
