"""From rows to token ids, and from predictions to what is said of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.data.encode import Encoded
from chainrule.data.entities import TOKENS
from chainrule.data.flaws import MAX_PROBLEMS
from chainrule.data.lists import QUERY
from chainrule.errors import DataError, Problem, Where
from chainrule.inference.predict import Predictor
from chainrule.inference.ranks import RANK, SCORE, Row, ranks_of
from chainrule.inference.words import VECTOR, answers_found, entities_found, in_words


def encode_rows(predictor: Predictor, inputs: Mapping[str, Sequence[str]]) -> Encoded:
    """Tokenise rows of the fields that the model reads when it predicts."""
    if predictor.task.embeds or predictor.task.target.kind == "relevances":
        length = predictor.artifact.manifest.max_length
        encoded: Encoded = predictor.task.encode(predictor.tokenizer, inputs, None, length)
        return encoded
    return predictor.encode(inputs)


def refuse_unreadable(encoded: Encoded, numbers: np.ndarray) -> None:
    """Refuse rows that could not be encoded.

    Args:
        numbers: what the rows are called.

    Raises:
        DataError: there are some.
    """
    if not encoded.refused:
        return
    expected, todo = "questions that leave half of the tokens to their contexts", "Shorten these questions."
    found = [Problem(expected, why, todo, Where(row=int(numbers[row]))) for row, why in encoded.refused.items()]
    raise DataError("There are questions that are too long to be answered.", found[:MAX_PROBLEMS])


def rows_cut(predictor: Predictor, encoded: Encoded) -> np.ndarray:
    """(n,) which rows were longer than the model reads; in windows nothing is."""
    if predictor.task.target.kind in ("answers", "spans"):
        return np.zeros(len(encoded), bool)
    return encoded.cut


def rows_said(predictor: Predictor, inputs: Mapping[str, Sequence[str]], predictions: Predictions) -> list[Row]:
    """What is predicted of each row, under the names of the columns that `predict` writes."""
    kind, labels = predictor.task.target.kind, predictor.artifact.manifest.labels
    if predictor.task.embeds:
        return [{VECTOR: numbers} for numbers in predictions.values[:, 0].tolist()]
    if kind == "relevances":
        return [{SCORE: round(score, 6)} for score in predictions.values.numbers.tolist()]
    if kind == "answers":
        return answers_found(inputs["context"], predictions)
    if isinstance(predictions.values, Spans):
        return entities_found(inputs[TOKENS], predictions.values, labels)
    if kind == "class" and predictions.scores.ndim > 1:
        predictions = replace(predictions, scores=predictions.scores.max(axis=-1))
    return in_words(kind, labels, predictions)


def with_ranks(inputs: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> list[Row]:
    """Rows of queries with items, each with its place among those of its query."""
    ranks = ranks_of(inputs[QUERY], np.array([row[SCORE] for row in rows]))
    return [row | {RANK: rank} for row, rank in zip(rows, ranks.tolist(), strict=True)]
