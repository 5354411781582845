"""Scores of answers: a predicted piece of text against the most similar of the right ones.

Texts are compared as SQuAD does it (Rajpurkar et al., 2016), in lower case and without punctuation and the articles a,
an and the; as words, and each Chinese or Japanese character as a word, as CMRC 2018 (Cui et al., 2019) and MLQA (Lewis
et al., 2020) have it. Which of the two a piece of text is, is told character by character. Of a text that has nothing
else, punctuation and articles are kept, so that any text equals itself and no text equals "no answer".

    exact_match   the share of rows whose prediction has the same words as a right answer.
    f1            the mean over rows of the overlap in words, 2 · common / (predicted + right).

A row without an answer is right where none is predicted, and 0 otherwise. Where there are such rows, HasAns_ and NoAns_
are the scores of the other rows and of these.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from string import punctuation
from typing import Any

import numpy as np

from chainrule.core.spans import ALONE, Answers, Spans
from chainrule.core.task import Predictions

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CHARACTER = re.compile(rf"([{ALONE}])")


def words_of(text: str) -> list[str]:
    """The words of an answer that are compared."""
    lower = text.lower()
    plain = "".join(character for character in lower if not _is_punctuation(character))
    return split_words(_ARTICLES.sub(" ", plain)) or split_words(lower)


def row_scores(right: Sequence[str], predicted: str) -> tuple[float, float]:
    """Exact match and F1 of one row; an empty text is "no answer".

    Args:
        right: the right answers, of which the best counts; none where there is no answer.
    """
    if not right or not predicted:
        same = float(not right and not predicted)
        return same, same
    said = words_of(predicted)
    pairs = [(float(said == wanted), _f1(said, wanted)) for wanted in map(words_of, right)]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def tally(targets: Answers, values: Spans, kinds: int = 0) -> np.ndarray:
    """What each row adds to the sums: (n, 3) of exact match, F1, and 1 where there is an answer.

    Args:
        kinds: not asked; answers are of one kind.
    """
    pairs = zip(targets.texts(targets.spans), targets.texts(values), strict=True)
    scores = [row_scores(right, said[0] if said else "") for right, said in pairs]
    return np.column_stack([np.array(scores, np.float64).reshape(-1, 2), targets.answered])


def weighted(targets: Any, tallies: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of `measure` for each of r weightings of the rows; one that is 0/0 is 0.

    Args:
        targets: not asked; `tallies` hold what they say.
        tallies: (n, 3) of `tally`.
        weights: (r, n), how often each row counts.

    Returns:
        name -> (r,).
    """
    answered = tallies[:, 2] > 0
    groups = {"": np.ones(len(tallies), bool)}
    if not answered.all():
        groups |= {"HasAns_": answered, "NoAns_": ~answered}
    found = {}
    for prefix, rows in groups.items():
        counts = weights[:, rows].sum(axis=1)
        for column, name in enumerate(("exact_match", "f1")):
            sums, mean = weights[:, rows] @ tallies[rows, column], np.zeros(len(weights))
            found[f"{prefix}{name}"] = np.divide(sums, counts, out=mean, where=counts > 0)
    return found


def measure(targets: Answers, predictions: Predictions) -> dict[str, float]:
    """exact_match and f1, their HasAns_ and NoAns_ variants where rows have no answer, and loss where it is known.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    if not len(targets) or len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets and {len(predictions)} predictions")
    scores = weighted(None, tally(targets, predictions.values), np.ones((1, len(targets))))
    found = {name: float(value[0]) for name, value in scores.items()}
    if predictions.losses is not None:
        found["loss"] = float(np.mean(predictions.losses, dtype=np.float64))
    return found


def detail(targets: Answers, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """What goes wrong, as plain JSON values.

    Returns:
        {"kind": "answers", "rows": n, "errors": {"exact", "partly", "elsewhere", "missed", "invented", "none"}} (rows
        with a right answer; with an overlap; with none; with "no answer" where there is one; with an answer where there
        is none; rightly without).
    """
    scores = tally(targets, predictions.values)
    exact, f1, answered = scores[:, 0] > 0, scores[:, 1], scores[:, 2] > 0
    said = np.array([bool(texts) for texts in targets.texts(predictions.values)], bool)
    both = answered & said
    groups = {
        "exact": both & exact,
        "partly": both & ~exact & (f1 > 0),
        "elsewhere": both & (f1 == 0),
        "missed": answered & ~said,
        "invented": ~answered & said,
        "none": ~answered & ~said,
    }
    errors = {name: int(rows.sum()) for name, rows in groups.items()}
    return {"kind": "answers", "rows": len(targets), "errors": errors}


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def split_words(text: str) -> list[str]:
    """What white space sets apart, and each Chinese or Japanese character by itself."""
    return _CHARACTER.sub(r" \1 ", text).split()


@lru_cache(1 << 16)
def _is_punctuation(character: str) -> bool:
    return character in punctuation or unicodedata.category(character).startswith("P")
