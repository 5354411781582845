"""What a model says of rows, as a monitor counts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.monitoring.reference import Said


def said_of(kind: str, labels: Sequence[str], predictions: Predictions, targets: Any = None) -> Said:
    """What is counted of predictions.

    A class counts with its probability; several classes and the kinds of entities count, each once a row; a number or
    a relevance is followed as a score. Of other kinds rows alone are counted.

    Args:
        kind: of the targets.
        targets: the true values, of classes.
    """
    rows = len(predictions)
    if kind == "class":
        scores = predictions.scores.max(axis=-1) if predictions.scores.ndim > 1 else predictions.scores
        right = None if targets is None else np.asarray(predictions.values) == np.asarray(targets)
        return Said([(labels[int(value)],) for value in predictions.values], np.asarray(scores, float), right)
    if kind == "classes":
        return Said([tuple(labels[place] for place in np.flatnonzero(row).tolist()) for row in predictions.values])
    if isinstance(predictions.values, Spans) and kind == "spans":
        found = [tuple(dict.fromkeys(labels[kind] for _, _, kind in spans)) for spans in predictions.values.each()]
        return Said(found)
    if kind == "number":
        return Said([()] * rows, np.asarray(predictions.values, float), confident=False)
    if kind == "relevances":
        return Said([()] * rows, np.asarray(predictions.values.numbers, float), confident=False)
    return Said([()] * rows)


def said_of_texts(answers: Sequence[Mapping[str, Any]]) -> Said:
    """What is counted of texts that were written.

    How a text ended counts as its label: "stop" where the model ended it, "length" where it was cut; how many tokens it
    has is followed as a score, where that is known.

    Args:
        answers: each with `finished`, and perhaps `tokens`.
    """
    tokens = [answer.get("tokens") for answer in answers]
    scores = None if None in tokens else np.array(tokens, float)
    return Said([("stop" if answer["finished"] else "length",) for answer in answers], scores, confident=False)
