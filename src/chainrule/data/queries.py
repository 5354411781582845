"""Rows of a query, a text and how relevant it is: the rows of the same query make one list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np

from chainrule.core.recipe import Clean
from chainrule.core.report import Finding
from chainrule.data.clean import clean_texts
from chainrule.data.flaws import Flaw, finding
from chainrule.data.lists import ITEM, QUERY, RELEVANCE, Candidate, CandidateList, Grouped, list_table
from chainrule.data.rows import text_flaws
from chainrule.data.table import Table
from chainrule.data.targets import read_targets
from chainrule.data.texts import Texts
from chainrule.errors import Problem


def group_queries(tables: Mapping[str, Table], fields: Mapping[str, str], clean: Clean, on_bad_row: str) -> Grouped:
    """The rows of each split as lists, in the order in which queries first stand in the file.

    Args:
        fields: field -> column of "query", "item" and "relevance".
    """
    grouped = Grouped()
    numbers: dict[str, int] = {}
    for name, table in tables.items():
        split = None if name == "all" else name
        raw = {field: table.texts(fields[field]) for field in (QUERY, ITEM)}
        cleaned = clean_texts(raw, clean, table.places, split)
        values, wrong = read_targets(table, RELEVANCE, fields[RELEVANCE], "number")
        relevances = np.asarray(values)
        flaws = [*text_flaws(table.places, raw, cleaned.inputs), *wrong, *_negative(table, relevances)]
        good = ~np.isin(table.rows, [flaw.row for flaw in flaws if flaw.problem is not None])
        rows = _rows(cleaned.inputs, relevances, good)
        lists, more = _lists(table, rows, numbers)
        grouped.tables[name] = list_table(table, lists)
        grouped.findings += cleaned.findings
        grouped.note([*flaws, *more], table, split, on_bad_row)
        grouped.findings.append(_told(lists, table, split))
    return grouped


def _rows(
    inputs: Mapping[str, Texts], relevances: np.ndarray, good: np.ndarray
) -> Iterator[tuple[int, str, str, float]]:
    """Place, query, item and relevance of the rows that can be used."""
    both = zip(inputs[QUERY], inputs[ITEM], relevances.tolist(), good.tolist(), strict=True)
    return ((place, query, item, value) for place, (query, item, value, usable) in enumerate(both) if usable)


def _lists(
    table: Table, rows: Iterator[tuple[int, str, str, float]], numbers: dict[str, int]
) -> tuple[list[CandidateList], list[Flaw]]:
    """The lists that have a relevant candidate, and the flaws of the others and of repeated rows.

    Args:
        numbers: of the items; new ones are added.
    """
    found: dict[str, dict[str, tuple[int, float]]] = {}
    flaws = []
    for place, query, item, relevance in rows:
        own = found.setdefault(query, {})
        if item in own:
            flaws.append(Flaw("repeated-candidate", int(table.rows[place])))
        own.setdefault(item, (place, relevance))
    lists = []
    for query, own in found.items():
        first = min(place for place, _ in own.values())
        if not any(relevance > 0 for _, relevance in own.values()):
            todo = "Add a row with a relevance above 0, remove the rows of this query, or pass --on-bad-row skip."
            got = f"{len(own):,} with relevance 0"
            problem = Problem("a relevant item for the query", got, todo, table.where(first, RELEVANCE))
            flaws.append(Flaw("no-relevant", int(table.rows[first]), problem))
            continue
        each = [
            Candidate(item, item, numbers.setdefault(item, len(numbers)), value) for item, (_, value) in own.items()
        ]
        lists.append(CandidateList(first, json.dumps([query]), query, each))
    return lists, flaws


def _negative(table: Table, relevances: np.ndarray) -> list[Flaw]:
    todo = "Count relevance from 0 (not relevant) up."
    return [
        Flaw(
            "negative-relevance",
            int(table.rows[place]),
            Problem("a relevance of at least 0", f"{relevances[place]:g}", todo, table.where(int(place), RELEVANCE)),
        )
        for place in np.flatnonzero(relevances < 0)
    ]


def _told(lists: list[CandidateList], table: Table, split: str | None) -> Finding:
    sizes = [len(each.candidates) for each in lists] or [0]
    relevant = sum(item.relevance > 0 for each in lists for item in each.candidates)
    message = (
        f"{split or 'The file'} has {len(lists):,} queries with {min(sizes):,} to {max(sizes):,} candidates each "
        f"({sum(sizes):,} in all, {relevant:,} of them relevant). Metrics rank these candidates, and no others."
    )
    return finding("candidates", "info", message, split=split, file=table.file)
