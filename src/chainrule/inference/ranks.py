"""Scores of items for queries or users, and the places that they give."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.core.recipe import parse_options
from chainrule.data.flaws import MAX_PROBLEMS, shorten, some
from chainrule.data.grouping import read_profiles
from chainrule.data.lists import ITEM, QUERY, USER, cell_of
from chainrule.data.profiles import Profiles, Sampling
from chainrule.data.stream import Inputs, stream
from chainrule.data.table import Places
from chainrule.errors import DataError, Problem, RecipeError, Where
from chainrule.inference.predict import Predictor
from chainrule.inference.towers import Towers

SCORE, RANK = "predicted_score", "predicted_rank"
BEST_ID, BEST_TEXT = "predicted_item", "item_text"
_BEST = (BEST_ID, RANK, SCORE, BEST_TEXT)
Row = dict[str, Any]
Scorer = Callable[[Sequence[str], Sequence[str]], tuple[np.ndarray, np.ndarray]]


def scorer_of(predictor: Predictor) -> Scorer:
    """Queries with their items -> (n,) the model's output, and a mask of the pairs that it read in part."""
    if predictor.task.makes_vectors:
        return Towers(predictor).scores

    def scores(queries: Sequence[str], items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        inputs = {QUERY: list(queries), ITEM: [cell_of([text]) for text in items]}
        encoded = predictor.task.encode(predictor.tokenizer, inputs, None, predictor.artifact.manifest.max_length)
        return predictor.predict(encoded).values.numbers, encoded.cut

    return scores


def ranks_of(queries: Sequence[str], scores: np.ndarray) -> np.ndarray:
    """(n,) the place of each row among those of its query, 1 for the highest score; equal scores share the first."""
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(query, len(known)) for query in queries])
    order = np.lexsort((-scores, codes))
    group, value = codes[order], scores[order]
    new_group = np.append(True, group[1:] != group[:-1])
    new_value = new_group | np.append(True, value[1:] != value[:-1])
    places = np.arange(len(scores))
    starts = np.maximum.accumulate(np.where(new_group, places, 0))
    firsts = np.maximum.accumulate(np.where(new_value, places, 0))
    found = np.zeros(len(scores), np.int64)
    found[order] = firsts - starts + 1
    return found


def ranked_chunks(
    predictor: Predictor, inputs: Inputs, cut: list[int] | None = None
) -> Iterator[tuple[list[str], list[Row]]]:
    """Column names and rows with scores and ranks, chunk by chunk, in the order of the input.

    The input is read twice, since the rows of a query may stand anywhere: for the scores, and to be written.

    Args:
        cut: takes the numbers of the rows (1-based) that were longer than the model reads.
    """
    profiles = _profiles(predictor, inputs.source) if USER in inputs.fields else None
    parts, keys, score = [np.zeros(0, np.float32)], list[str](), scorer_of(predictor)
    for table, texts in inputs:
        keys += list(texts[QUERY] if profiles is None else texts[USER])
        queries, items = (texts[QUERY], texts[ITEM]) if profiles is None else _told(profiles, texts, table.places)
        scores, longer = score(queries, items)
        parts.append(scores)
        if cut is not None:
            cut += table.rows[longer].tolist()
    scores = np.concatenate(parts)
    ranks, done = ranks_of(keys, scores), 0
    for table, _ in inputs:
        some = zip(table.columns.to_pylist(), scores[done:].tolist(), ranks[done:].tolist(), strict=False)
        yield [*table.names, SCORE, RANK], [row | {SCORE: round(s, 6), RANK: rank} for row, s, rank in some]
        done += len(table)


def best_items(
    predictor: Predictor, source: Any, top: int, fields: Mapping[str, str]
) -> tuple[int, Iterator[tuple[list[str], list[Row]]]]:
    """Of all items that a user has not rated the best, for each user that a file names.

    Args:
        source: a file with a column of users; what they did lies beside it.
        top: how many.
        fields: field -> column, as the user asked.

    Returns:
        How many users there are, and for each the names of the columns and his rows.

    Raises:
        DataError: the file names no users, or there is nothing beside it.
        RecipeError: the model was not trained on users, or `top` is not above 0.
    """
    if top < 1:
        problem = Problem("a number above 0", str(top), "Change it.", Where(field="top"))
        raise RecipeError("The number of best items is wrong.", [problem])
    if USER not in predictor.artifact.manifest.inputs:
        todo = "Leave --top out: the items of a query are those of the file."
        problem = Problem("a model that was trained on users and items", "one of queries", todo, Where(field="top"))
        raise RecipeError("There is no catalogue to choose from.", [problem])
    profiles, (name, users) = _profiles(predictor, source), _users(predictor, source, fields)
    score = scorer_of(predictor)
    return len(users), (([name, *_BEST], _best(score, profiles, name, user, top)) for user in users)


def _best(score: Scorer, profiles: Profiles, name: str, user: str, top: int) -> list[Row]:
    """The rows of one user.

    Args:
        name: of the column of users.
    """
    left = np.setdiff1d(np.arange(len(profiles.catalogue)), list(profiles.rated.get(user, set())))
    text, _ = profiles.text(user, math.nan, [])
    items = [profiles.catalogue.texts[item] for item in left.tolist()]
    if not items:
        return []
    scores, _ = score([text] * len(items), items)
    best = np.argsort(-scores, kind="stable")[:top].tolist()
    found = ((profiles.catalogue.ids[left[place]], float(scores[place]), items[place]) for place in best)
    return [
        {name: user, BEST_ID: item, RANK: rank, SCORE: round(score, 6), BEST_TEXT: text}
        for rank, (item, score, text) in enumerate(found, start=1)
    ]


def _profiles(predictor: Predictor, source: Any) -> Profiles:
    """Users and items of the folder that a file lies in.

    Raises:
        DataError: it is no file, or there is nothing beside it that tells.
    """
    if not isinstance(source, str | os.PathLike):
        todo = "Save the rows to a file beside train.csv and items.csv."
        raise DataError("What users liked is not known.", [Problem("a file", type(source).__name__, todo)])
    artifact = predictor.artifact
    options = parse_options(predictor.task.options, artifact.task, "task")
    if not isinstance(options, Sampling):
        raise ValueError("tasks of lists say how these are drawn")
    return read_profiles(Path(source).parent, artifact.manifest.fields, options, artifact.clean)


def _users(predictor: Predictor, source: Any, fields: Mapping[str, str]) -> tuple[str, list[str]]:
    """The column of users of a file, and each user once."""
    column = fields.get(USER, predictor.artifact.manifest.fields[USER])
    found: dict[str, None] = {}
    for table in stream(source):
        if column not in table.names:
            todo = "Say which column it is: --column user=COLUMN."
            problem = Problem(f"the column {column!r} of users", some(table.names), todo, Where(file=table.file))
            raise DataError("The file names no users.", [problem])
        found |= dict.fromkeys(user for user in table.texts(column) if user and user.strip())
    return column, list(found)


def _told(profiles: Profiles, texts: Mapping[str, Sequence[str]], places: Places) -> tuple[list[str], list[str]]:
    """Each row's user, told by what else he liked, and the text of its item.

    Raises:
        DataError: items that the catalogue has not.
    """
    catalogue, problems = profiles.catalogue, list[Problem]()
    queries, items = list[str](), list[str]()
    for row, (user, name) in enumerate(zip(texts[USER], texts["item_id"], strict=True)):
        number = catalogue.numbers.get(name)
        if number is None:
            todo = "Add the item with its text, or remove this row."
            expected, where = "an item with a text in the table of items", places.where(row, "item_id")
            problems.append(Problem(expected, shorten(name), todo, where))
            continue
        queries.append(profiles.text(user, math.nan, [number])[0])
        items.append(catalogue.texts[number])
    if problems:
        raise DataError("There are items without a text.", problems[:MAX_PROBLEMS])
    return queries, items
