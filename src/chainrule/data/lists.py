"""Lists of candidates as rows of a table: what `queries` and `interactions` make of a file's rows.

A row of such a table is a query, or a user as a text, with all its candidates; it stands at the file's row that its
first relevant candidate, or its first one, is from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa

from chainrule.core.lists import Lists, starts_of
from chainrule.core.report import Finding
from chainrule.data.flaws import Flaw, summarise
from chainrule.data.table import Table
from chainrule.data.texts import Texts, stored
from chainrule.errors import Problem

QUERY, ITEM, RELEVANCE, USER = "query", "item", "relevance", "user"
_CHUNK = 4096
_SCHEMA = pa.schema(
    {
        QUERY: pa.string(),
        ITEM: pa.string(),
        USER: pa.string(),
        "key": pa.string(),
        RELEVANCE: pa.list_(pa.float32()),
        "number": pa.list_(pa.int32()),
        "cold": pa.list_(pa.uint8()),
    }
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One item of a list.

    Attributes:
        id: what it is called; its text where it has no other name.
        number: the same for the same item in all lists of a data set.
        cold: of `NEW_ITEM` and `NEW_USER`.
    """

    id: str
    text: str
    number: int
    relevance: float
    cold: int = 0


@dataclass(frozen=True)
class CandidateList:
    """A query with its candidates.

    Attributes:
        place: the position, in the file's table, of the row that it stands at.
        key: what makes it the same list as another, wherever it stands.
        user: his id, where the query is a user; else None.
        history: how many items tell who he is.
    """

    place: int
    key: str
    query: str
    candidates: Sequence[Candidate]
    user: str | None = None
    history: int = 0


@dataclass
class Grouped:
    """Tables of lists by split, and what was noticed on the way."""

    tables: dict[str, Table] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def note(self, flaws: Sequence[Flaw], table: Table, split: str | None, on_bad_row: str) -> None:
        """Add what is wrong with rows of a table."""
        told, problems = summarise(flaws, split=split, file=table.file, on_bad_row=on_bad_row)
        self.findings += told
        self.problems += problems


def list_table(source: Table, lists: Iterable[CandidateList]) -> Table:
    """Lists as a table whose rows stand where theirs stand in the source."""
    places: list[int] = []
    left = iter(lists)

    def pieces() -> Iterator[pa.Table]:
        while some := list(islice(left, _CHUNK)):
            places.extend(each.place for each in some)
            yield pa.Table.from_pylist([_cells(each) for each in some], _SCHEMA)

    found = stored(pieces())
    whole = pa.concat_tables(found) if found else _SCHEMA.empty_table()
    where = source.places[np.array(places, np.int64)]
    return Table(source.file, whole, where.rows, where.lines)


def _cells(row: CandidateList) -> dict[str, object]:
    named = row.user is not None
    each = row.candidates
    texts = [[item.id, item.text] for item in each] if named else [item.text for item in each]
    return {
        QUERY: row.query,
        ITEM: json.dumps(texts, ensure_ascii=False),
        USER: row.user,
        "key": row.key,
        RELEVANCE: [item.relevance for item in each],
        "number": [item.number for item in each],
        "cold": [item.cold for item in each],
    }


def candidates_of(cell: str) -> tuple[list[str], list[str]]:
    """The ids and the texts of a list's candidates; a text is its own id where it has no other."""
    values = json.loads(cell)
    pairs = [value if isinstance(value, list) else [value, value] for value in values]
    return [name for name, _ in pairs], [text for _, text in pairs]


def cell_of(texts: Sequence[str]) -> str:
    """Candidates that are known by their texts alone, as `candidates_of` reads them."""
    return json.dumps(list(texts), ensure_ascii=False)


def read_lists(table: Table) -> tuple[dict[str, Texts], Lists, Texts]:
    """The inputs of a table of lists, the relevances of its candidates, and its keys."""
    names = [QUERY, ITEM] + [USER] * (len(table) > 0 and table.columns.column(USER).null_count == 0)
    flat = {}
    for name in (RELEVANCE, "number", "cold"):
        column = table.columns.column(name).combine_chunks()
        flat[name] = column.flatten().to_numpy(zero_copy_only=False)
    counts = column.value_lengths().to_numpy(zero_copy_only=False)
    found = Lists(starts_of(counts), flat[RELEVANCE], flat["number"], flat["cold"])
    return {name: table.texts(name) for name in names}, found, table.texts("key")
