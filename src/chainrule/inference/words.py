"""What predictions say, one dictionary a row: labels by their names, answers and entities as pieces of the text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.data.entities import is_words, tag_names, tags_of, units_of
from chainrule.inference.ranks import SCORE, Row

LABEL = "predicted_label"
ENTITIES, TAGS = "predicted_entities", "predicted_tags"
ANSWER, BEGIN = "predicted_answer", "predicted_start"
VECTOR = "predicted_vector"


def answers_found(contexts: Sequence[str], predictions: Predictions) -> list[Row]:
    """Each row's answer, where it begins and how probable it is; an empty one and no place where there is none."""
    rows: list[Row] = []
    beats = dict(zip(predictions.values.rows.tolist(), predictions.values.scores.tolist(), strict=True))
    for row, (context, spans) in enumerate(zip(contexts, predictions.values.each(), strict=True)):
        if beats.get(row, 0.0) > 0:
            ((start, end, _),) = spans
            rows.append({ANSWER: context[start:end], BEGIN: start, SCORE: round(float(predictions.scores[row, 0]), 6)})
        else:
            rows.append({ANSWER: "", BEGIN: None, SCORE: round(float(predictions.scores[row, 1]), 6)})
    return rows


def entities_found(cells: Sequence[str], found: Spans, labels: Sequence[str]) -> list[Row]:
    """Each row's entities: of a text in characters; of words in words, and each word's tag beside them."""
    scores = iter(found.scores.tolist())
    rows: list[Row] = []
    for cell, spans in zip(cells, found.each(), strict=True):
        text, units = units_of(cell)
        made = [
            {"start": start, "end": end, "label": labels[kind], "text": text[start:end], "score": round(score, 6)}
            for (start, end, kind), score in zip(spans, islice(scores, len(spans)), strict=True)
        ]
        if not is_words(cell):
            rows.append({ENTITIES: made})
            continue
        begins, ends = (
            {start: n for n, (start, _) in enumerate(units)},
            {end: n + 1 for n, (_, end) in enumerate(units)},
        )
        made = [{**entity, "start": begins[entity["start"]], "end": ends[entity["end"]]} for entity in made]
        names = tag_names(labels)
        rows.append({ENTITIES: made, TAGS: [names[tag] for tag in tags_of(spans, units).tolist()]})
    return rows


def in_words(kind: str, labels: Sequence[str], predictions: Predictions) -> list[Row]:
    """Label names and scores: one label, several joined by "|", or a number."""
    if kind == "number":
        return [{SCORE: float(value)} for value in predictions.values]
    if kind == "class":
        pairs = zip(predictions.values, predictions.scores, strict=True)
        return [{LABEL: labels[int(value)], SCORE: round(float(score), 6)} for value, score in pairs]
    rows = []
    for chosen, scores in zip(predictions.values, predictions.scores, strict=True):
        places = np.flatnonzero(chosen)
        joined = "|".join(f"{float(scores[place]):.6f}" for place in places)
        rows.append({LABEL: "|".join(labels[place] for place in places.tolist()), SCORE: joined})
    return rows
