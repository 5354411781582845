"""Rows that are in memory, as texts or as objects, brought to the fields that a model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from chainrule.data.chat import MESSAGES, PLAIN, beginning_of, prompt_of
from chainrule.data.clean import clean_text
from chainrule.data.entities import TOKENS, as_input
from chainrule.data.flaws import MAX_PROBLEMS
from chainrule.data.images import IMAGE
from chainrule.data.jsontext import unfit
from chainrule.data.lists import ITEM, QUERY, USER, cell_of
from chainrule.data.stream import load_inputs
from chainrule.data.table import array_of
from chainrule.errors import DataError, Problem, Where
from chainrule.inference.predict import Predictor
from chainrule.system.images import UnreadableImageError, examine_image

Inputs = dict[str, Sequence[str]]

# kinds of targets whose input is one text, whatever was trained on: the field it goes by, and how it is written there
_ONE_TEXT: dict[str, tuple[str, Callable[[str], str]]] = {
    "reply": (MESSAGES, prompt_of),
    "preference": (MESSAGES, prompt_of),
    "spans": (TOKENS, as_input),
    "written": ("source", str),
}
_INPUTS: dict[tuple[str, ...], str] = {
    ("text_a", "text_b"): "pairs of texts",
    ("question", "context"): "questions with their contexts",
    ("query", "item"): "queries with items",
}


def texts_given(predictor: Predictor, inputs: Mapping[str, Sequence[str]]) -> Inputs:
    """Texts, cleaned as the training texts were, as the fields that the model reads.

    Args:
        inputs: the fields the model was trained on, e.g. {"text": […]} or {"text_a": […], "text_b": […]}; prompts are
            {"text": […]} too. Of a model of images one field of paths or data URIs.

    Raises:
        DataError: other fields than the model was trained on, nothing in them, or empty texts.
    """
    if predictor.task.sees:
        return _images(next(iter(inputs.values()), []) if len(inputs) == 1 else [])
    wanted = wanted_fields(predictor)
    if set(inputs) != set(wanted):
        problem = Problem(
            expected=f"the input {' and '.join(wanted)}",
            got=" and ".join(inputs) or "nothing",
            todo=f"This model was trained on {_INPUTS.get(wanted, 'single texts')}.",
        )
        raise DataError("The inputs do not fit this model.", [problem])
    clean = predictor.artifact.clean
    cleaned = {name: [clean_text(text, clean) for text in texts] for name, texts in inputs.items()}
    counts = {len(texts) for texts in cleaned.values()}
    if len(counts) > 1:
        got = ", ".join(f"{len(texts)} of {name}" for name, texts in cleaned.items())
        problem = Problem(expected="as many texts in each field", got=got, todo="Give each text its partner.")
        raise DataError("The texts do not make pairs.", [problem])
    problems = [
        Problem("a text", "an empty one", "Fill in or remove this text.", Where(row=row, field=name))
        for name, texts in cleaned.items()
        for row, text in enumerate(texts, start=1)
        if not text.strip()
    ]
    if counts == {0}:
        problems = [Problem("at least one text", "none", "Give a text to predict.")]
    if problems:
        raise DataError("The texts cannot be predicted.", problems)
    return _as_read(predictor, cleaned)


def wanted_fields(predictor: Predictor) -> tuple[str, ...]:
    """What the fields of texts in memory are called."""
    kind = predictor.task.target.kind
    if kind == "relevances":
        return QUERY, ITEM
    one_text = kind in _ONE_TEXT or predictor.task.embeds
    return ("text",) if one_text else predictor.artifact.manifest.inputs


def _as_read(predictor: Predictor, cleaned: Mapping[str, list[str]]) -> Inputs:
    kind = predictor.task.target.kind
    if kind == "relevances":
        return {QUERY: cleaned[QUERY], ITEM: [cell_of([text]) for text in cleaned[ITEM]]}
    if kind not in _ONE_TEXT:
        return dict(cleaned)
    field, written = _ONE_TEXT[kind]
    if PLAIN in predictor.artifact.manifest.fields:
        written = beginning_of
    return {field: [written(text) for text in cleaned["text"]]}


def _images(cells: Sequence[str]) -> Inputs:
    """Images, given as paths or data URIs."""
    problems = [] if cells else [Problem("at least one image", "none", "Give the path of an image.")]
    for row, cell in enumerate(cells, start=1):
        try:
            examine_image(cell)
        except UnreadableImageError as error:
            todo, where = "Correct the path or the image.", Where(row=row, field=IMAGE)
            problems.append(Problem("an image, as a path or a data URI", f"{error} ({cell[:80]})", todo, where))
    if problems:
        raise DataError("The images cannot be predicted.", problems[:MAX_PROBLEMS])
    return {IMAGE: list(cells)}


def rows_given(predictor: Predictor, rows: Sequence[Mapping[str, Any]]) -> Inputs:
    """Objects, as the lines of a JSONL file would be read, as the fields that the model reads.

    Raises:
        DataError: keys that do not fit the model, or rows that cannot be predicted; all of them are named.
    """
    problems = [
        Problem("text", "half of a surrogate pair, or too deep a nesting", "Correct this row.", Where(row=number))
        for number, row in enumerate(rows, start=1)
        if unfit(row)
    ]
    if problems:
        raise DataError("There are rows that cannot be read.", problems[:MAX_PROBLEMS])
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise DataError("The rows are empty.", [Problem("objects with keys", "none", "Fill in the rows.")])
    table = pa.table([array_of([row.get(name) for row in rows]) for name in names], names=names)
    artifact = predictor.artifact
    try:
        found = load_inputs(table, predictor.task, artifact.manifest.fields, len(rows), clean=artifact.clean)
    except DataError as error:
        raise DataError("The rows cannot be predicted.", [_of_rows(problem) for problem in error.problems]) from None
    if USER in found.fields:
        todo = 'Give the texts of both: {"query": …, "item": …}.'
        problem = Problem("queries with items, as texts", f"the keys {', '.join(names)}", todo)
        raise DataError("Users and items are looked up in a folder, which is not here.", [problem])
    ((_, inputs),) = list(found)
    texts = {name: [str(text) for text in column] for name, column in inputs.items()}
    return _as_read(predictor, texts) if QUERY in texts and ITEM in texts else dict(texts)


def _of_rows(problem: Problem) -> Problem:
    """A problem of a table, told of rows that are objects: these have keys and no file."""
    where = replace(problem.where, file=None)
    if where.row is not None:
        return replace(problem, where=where)
    expected, got = (text.replace("column", "key") for text in (problem.expected, problem.got))
    return Problem(expected, got, "Name the keys as the columns of the training data.", where)
