"""TF-IDF features of one text or a pair: word 1–2-grams and character 1–4-grams, so that text without spaces works too.

Each block is scaled to length 1 per text. A pair has the features of both texts side by side, the products of what
they share, and a few numbers about how alike they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

MAX_FEATURES = 120_000  # of one text; two thirds for characters
# N-grams are chosen from this much text, which takes up to a gigabyte; counted they are in all (LOG.md, 2026-11-22).
_ENOUGH = 5_000_000  # characters
_WIDEST = 30_000_000  # coefficients, so that many classes do not fill the memory
_COMMON = 0.3  # character n-grams in more texts than this say little and cost most of the time
_ALIKE = 5.0  # weight of the numbers about a pair beside its n-grams, of which a text has length 1 per block
_SHAPES = {"word": (1, 2), "char": (1, 4)}


@dataclass(frozen=True)
class NGrams:
    """A vocabulary with its inverse document frequencies.

    Attributes:
        words, characters: the n-grams, in the order of their columns.
        word_idf, character_idf: one weight per n-gram, float32.
    """

    words: tuple[str, ...]
    characters: tuple[str, ...]
    word_idf: np.ndarray
    character_idf: np.ndarray

    def __len__(self) -> int:
        return len(self.words) + len(self.characters)


def fit(inputs: Sequence[Sequence[str]], outputs: int) -> tuple[NGrams, sparse.csr_matrix]:
    """Choose the n-grams of the training texts and count in how many texts each occurs.

    Args:
        inputs: one or two lists of n training texts.
        outputs: how many classes are to be fitted; many classes get fewer features.

    Returns:
        The n-grams, and the features of the training rows as `transform` gives them.

    Raises:
        ValueError: no rows.
    """
    texts = [text for column in inputs for text in column]
    if not texts:
        raise ValueError("there must be at least one training row")
    room = min(MAX_FEATURES, max(6_000, _WIDEST // outputs))
    words, word_counts, word_idf = _vocabulary(texts, "word", room // 3)
    characters, character_counts, character_idf = _vocabulary(texts, "char", room - room // 3)
    grams = NGrams(words, characters, word_idf, character_idf)
    weighted = _weigh(word_counts, word_idf), _weigh(character_counts, character_idf)
    rows = len(inputs[0])
    blocks = [
        (weighted[0][i * rows : (i + 1) * rows], weighted[1][i * rows : (i + 1) * rows]) for i in range(len(inputs))
    ]
    return grams, _join(blocks, inputs)


def transform(grams: NGrams, inputs: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """Features of rows.

    Args:
        grams: from `fit`.
        inputs: one or two lists of n texts.

    Returns:
        (n, width(len(grams), len(inputs))) float32.
    """
    blocks = [
        (
            _weigh(_count(texts, grams.words, "word"), grams.word_idf),
            _weigh(_count(texts, grams.characters, "char"), grams.character_idf),
        )
        for texts in inputs
    ]
    return _join(blocks, inputs)


def width(grams: int, fields: int) -> int:
    """How many columns `transform` gives for so many n-grams and one or two fields."""
    return grams if fields == 1 else 3 * grams + 5


def _join(
    blocks: Sequence[tuple[sparse.csr_matrix, sparse.csr_matrix]], inputs: Sequence[Sequence[str]]
) -> sparse.csr_matrix:
    parts = [block for pair in blocks for block in pair]
    if len(blocks) == 2:
        (word_a, char_a), (word_b, char_b) = blocks
        shared = [word_a.multiply(word_b), char_a.multiply(char_b)]
        alike = [_row_sums(product) for product in shared]  # the cosines
        alike += [_overlap(word_a, word_b), _overlap(char_a, char_b), _length_ratio(inputs[0], inputs[1])]
        parts += [*shared, sparse.csr_matrix(np.stack(alike, axis=1).astype(np.float32) * _ALIKE)]
    return sparse.csr_matrix(sparse.hstack(parts, format="csr"), dtype=np.float32)


def _vocabulary(
    texts: Sequence[str], analyzer: str, room: int
) -> tuple[tuple[str, ...], sparse.csr_matrix, np.ndarray]:
    """The n-grams, their counts in each text, and their inverse document frequencies."""
    rows, some = len(texts), _enough(texts)
    counter = CountVectorizer(
        analyzer=analyzer,
        ngram_range=_SHAPES[analyzer],
        min_df=2 if len(some) >= 100 else 1,
        max_df=_COMMON if analyzer == "char" and len(some) >= 100 else 1.0,
        max_features=room,
        dtype=np.float32,
    )
    try:
        counts = counter.fit_transform(some)
    except ValueError:  # scikit-learn's way to say that no n-gram is left, as in texts of rare emoji alone
        return (), sparse.csr_matrix((rows, 0), dtype=np.float32), np.zeros(0, dtype=np.float32)
    names = counter.get_feature_names_out()
    kept = [i for i, name in enumerate(names) if _writable(name)]
    chosen = tuple(str(names[i]) for i in kept)
    if len(some) < rows:
        counts = _count(texts, chosen, analyzer)
    elif len(kept) < len(names):
        counts = counts[:, kept]
    seen = np.bincount(counts.indices, minlength=len(kept))
    idf = (np.log((1 + rows) / (1 + seen)) + 1).astype(np.float32)
    return chosen, counts, idf


def _enough(texts: Sequence[str]) -> Sequence[str]:
    """All texts, or some of them drawn at random."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    if sizes.sum() <= _ENOUGH:
        return texts
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[i] for i in order[: max(1, np.searchsorted(np.cumsum(sizes[order]), _ENOUGH))]]


def _writable(text: str) -> bool:
    """Whether `text` can be stored as UTF-8; half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(texts: Sequence[str], names: Sequence[str], analyzer: str) -> sparse.csr_matrix:
    if not names or not texts:
        return sparse.csr_matrix((len(texts), len(names)), dtype=np.float32)
    vocabulary = {name: i for i, name in enumerate(names)}
    counter = CountVectorizer(analyzer=analyzer, ngram_range=_SHAPES[analyzer], vocabulary=vocabulary, dtype=np.float32)
    return counter.transform(texts)


def _weigh(counts: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """Damped counts times inverse document frequency, each row scaled to length 1."""
    counts.sort_indices()
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    return normalize(counts, copy=False) if min(counts.shape) else counts


def _row_sums(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1), dtype=np.float32).ravel()


def _overlap(first: sparse.csr_matrix, second: sparse.csr_matrix) -> np.ndarray:
    """The share of distinct n-grams that both texts have (Jaccard)."""
    one, two = first.sign(), second.sign()
    both = _row_sums(one.multiply(two))
    return np.asarray(both / np.maximum(_row_sums(one) + _row_sums(two) - both, 1))


def _length_ratio(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    lengths = np.array([[len(a), len(b)] for a, b in zip(first, second, strict=True)], dtype=np.float32).reshape(-1, 2)
    return np.asarray((lengths.min(axis=1) + 1) / (lengths.max(axis=1) + 1))
