"""What users did, and the items and users of the files that may lie beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from chainrule.core.recipe import Clean
from chainrule.core.report import Finding
from chainrule.data.clean import clean_texts
from chainrule.data.flaws import Flaw, shorten, some
from chainrule.data.split import TRAIN, hash_texts
from chainrule.data.table import Table
from chainrule.data.targets import read_targets
from chainrule.data.times import seconds_of
from chainrule.errors import DataError, Problem, Where

ITEMS, USERS = "items", "users"
BESIDE = (ITEMS, USERS)
_IDS = {
    ITEMS: ("item_id", "itemid", "movie_id", "product_id", "iid", "id", "item"),
    USERS: ("user_id", "userid", "customer_id", "uid", "id", "user"),
}
_TEXTS = ("text", "description", "content", "title", "name")
_TITLES = ("title", "name")


@dataclass(frozen=True)
class Catalogue:
    """All items there are, and what is known of users.

    Attributes:
        ids, texts, titles: of the items; an item's number is its place. A title is the text where there is no other.
        numbers: id -> number.
        attributes: user -> his attributes as a text.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Events:
    """Usable rows of one split, each a user with an item; a later row of both replaces an earlier one.

    Attributes:
        table: that they are from.
        places: (n,) int64 positions in it.
        users: (n,) ids.
        items: (n,) int64 numbers in the catalogue.
        ratings: (n,) float64; 1 where there are none.
        times: (n,) float64 seconds; NaN where they are not known.
        positive: the lowest rating that counts as liked.
        rated: whether there are ratings.
    """

    table: Table
    places: np.ndarray
    users: list[str]
    items: np.ndarray
    ratings: np.ndarray
    times: np.ndarray
    positive: float
    rated: bool

    def __len__(self) -> int:
        return len(self.places)

    @property
    def liked(self) -> np.ndarray:
        """(n,) bool."""
        found: np.ndarray = self.ratings >= self.positive
        return found

    def take(self, rows: np.ndarray) -> Events:
        """Those of the rows at these positions, in that order."""
        users = [self.users[row] for row in rows.tolist()]
        arrays = {name: getattr(self, name)[rows] for name in ("places", "items", "ratings", "times")}
        return replace(self, users=users, **arrays)

    def by_user(self) -> dict[str, np.ndarray]:
        """User -> positions of his rows, in the order of time and then of the file; users as they first appear."""
        found: dict[str, list[int]] = {user: [] for user in self.users}
        for row in np.lexsort((self.places, self.times)).tolist():
            found[self.users[row]].append(row)
        return {user: np.array(rows, np.int64) for user, rows in found.items()}


def read_catalogue(
    beside: Mapping[str, Table], file: str | None, clean: Clean
) -> tuple[Catalogue, dict[str, list[Flaw]], list[Finding]]:
    """The items, and the attributes of users where there is a table of them; flaws by table; what was cleaned.

    Args:
        beside: tables under "items" and perhaps "users".
        file: of the rows, for messages.

    Raises:
        DataError: there are no items, or no column with their ids or their texts.
    """
    if ITEMS not in beside:
        todo = "Put a file items.csv with the columns item_id and text beside the rows, or give queries with texts."
        problem = Problem("a table of items", "none", todo, Where(file=file))
        raise DataError("Rows of users and items need the texts of the items.", [problem])
    found, flaws = Catalogue(), {name: list[Flaw]() for name in beside}
    table = beside[ITEMS]
    text = _column(table, _TEXTS, "the texts of the items")
    title = next((name for name in table.names if name.casefold() in _TITLES), text)
    ids = table.texts(_column(table, _IDS[ITEMS], "the items' ids"))
    cleaned = clean_texts({name: table.texts(name) for name in (text, title)}, clean, table.places, None)
    texts, titles = cleaned.inputs[text], cleaned.inputs[title]
    for place, (name, words, short) in enumerate(zip(ids, texts, titles, strict=True)):
        flaw = _entry_flaw(table, place, name, found.numbers, words or "", "text")
        if flaw is not None:
            flaws[ITEMS].append(flaw)
            continue
        found.numbers[name] = len(found.ids)
        found.ids.append(name)
        found.texts.append(words)
        found.titles.append(short or words)
    if USERS in beside:
        _read_attributes(beside[USERS], found.attributes, flaws[USERS])
    return found, flaws, cleaned.findings


def _read_attributes(table: Table, attributes: dict[str, str], flaws: list[Flaw]) -> None:
    key = _column(table, _IDS[USERS], "the users' ids")
    names = [name for name in table.names if name != key]
    cells = [table.texts(name) for name in names]
    for place, (user, *values) in enumerate(zip(table.texts(key), *cells, strict=True)):
        flaw = _entry_flaw(table, place, user, attributes, "known", "user")
        if flaw is None:
            known = zip(names, values, strict=True)
            attributes[user] = ", ".join(f"{name} {value}" for name, value in known if value and value.strip())
        else:
            flaws.append(flaw)


def _entry_flaw(
    table: Table, place: int, name: str | None, known: Mapping[str, object], text: str, field: str
) -> Flaw | None:
    row = int(table.rows[place])
    if not name or not name.strip():
        return Flaw("missing-key", row, Problem("an id", "nothing", "Fill it in.", table.where(place)))
    if name in known:
        todo = "Leave one of the two."
        return Flaw("repeated-key", row, Problem("an id of its own", shorten(name), todo, table.where(place)))
    if not text.strip() or "\0" in text:
        got = f"{'a NUL byte' if text.strip() else 'none'} for {shorten(name)}"
        return Flaw("empty-text", row, Problem("a text", got, "Fill it in.", table.where(place, field)))
    return None


def _column(table: Table, names: Sequence[str], what: str) -> str:
    folded = {name.casefold(): name for name in reversed(table.names)}
    found = next((folded[name] for name in names if name in folded), None)
    if found is None:
        problem = Problem(
            f"a column for {what}: {', '.join(names)}", some(table.names), "Rename one.", Where(table.file)
        )
        raise DataError(f"The columns of {table.file} cannot be used.", [problem])
    return found


def read_events(
    table: Table, fields: Mapping[str, str], catalogue: Catalogue, positive: float
) -> tuple[Events, list[Flaw]]:
    """The rows of a split.

    Args:
        fields: field -> column of "user" and "item_id", and perhaps of "rating" and "timestamp".
        positive: the lowest rating that counts as liked.
    """
    users, items = (list(table.texts(fields[name])) for name in ("user", "item_id"))
    ratings, flaws = np.ones(len(table)), list[Flaw]()
    if "rating" in fields:
        values, flaws = read_targets(table, "rating", fields["rating"], "number")
        ratings = np.asarray(values)
    times = np.full(len(table), np.nan)
    if "timestamp" in fields:
        times, wrong = _times(table, fields["timestamp"])
        flaws += wrong
    latest: dict[tuple[str, str], int] = {}
    for place, (user, item) in enumerate(zip(users, items, strict=True)):
        flaw = _event_flaw(table, place, user, item, catalogue)
        if flaw is not None:
            flaws.append(flaw)
    bad = {flaw.row for flaw in flaws}
    for place in np.lexsort((np.arange(len(table)), times)).tolist():
        if int(table.rows[place]) not in bad:
            before = latest.pop((users[place], items[place]), None)
            latest[users[place], items[place]] = place
            flaws += [Flaw("repeated-interaction", int(table.rows[before]))] if before is not None else []
    places = np.array(sorted(latest.values()), np.int64)
    numbers = np.array([catalogue.numbers[items[place]] for place in places.tolist()], np.int64)
    kept = [users[place] for place in places.tolist()]
    chosen = ratings[places], times[places]
    return Events(table, places, kept, numbers, *chosen, positive, "rating" in fields), flaws


def _event_flaw(table: Table, place: int, user: str | None, item: str | None, catalogue: Catalogue) -> Flaw | None:
    row = int(table.rows[place])
    for name, value in (("user", user), ("item_id", item)):
        if not value or not value.strip():
            problem = Problem("an id", "nothing", "Fill in or remove this row.", table.where(place, name))
            return Flaw("missing-key", row, problem)
    if item not in catalogue.numbers:
        todo = "Add the item with its text, or remove this row."
        problem = Problem(
            "an item with a text in the table of items", shorten(item or ""), todo, table.where(place, "item_id")
        )
        return Flaw("unknown-item", row, problem)
    return None


def _times(table: Table, column: str) -> tuple[np.ndarray, list[Flaw]]:
    """Seconds from numbers or ISO dates."""
    found, flaws = np.full(len(table), np.nan), []
    for place, cell in enumerate(table.texts(column)):
        try:
            found[place] = seconds_of(cell or "")
        except (ValueError, OverflowError):
            todo = "Write seconds as a number, or a date such as 2026-11-22 or 2026-11-22T08:30:00."
            problem = Problem("a time", shorten(cell) if cell else "nothing", todo, table.where(place, "timestamp"))
            flaws.append(Flaw("not-a-time", int(table.rows[place]), problem))
    return found, flaws


def lowest_positive(ratings: Iterator[float], asked: float | None, where: Where) -> float:
    """From which rating on an item counts as liked: what was asked, 4 where ratings go to 5, 1 where they go to 1.

    Raises:
        DataError: ratings are of another scale, and nothing was asked.
    """
    if asked is not None:
        return asked
    highest = max((value for value in ratings if not math.isnan(value)), default=1.0)
    if highest <= 1 or 1 < highest <= 5:
        return 1.0 if highest <= 1 else 4.0
    todo = "Say from which rating on an item was liked: --set task.options.positive=7"
    problem = Problem("ratings up to 1 or 5, or a threshold", f"ratings up to {highest:g}", todo, where)
    raise DataError("It is not known which ratings mean that an item was liked.", [problem])


def cut_events(events: Events, fractions: Mapping[str, float], by: str) -> dict[str, Events]:
    """Cut validation and test out: the latest rows, or where times are not known some that their hashes decide.

    Args:
        fractions: split -> share, the latest first.
        by: "auto", or "time" or "hash" for one of the two in any case.

    Raises:
        DataError: "time" is asked for, and times are not known.
    """
    order, unknown = np.lexsort((events.places, events.times)), bool(np.isnan(events.times).all())
    if unknown and by == "time":
        todo = "Name it with --set data.fields.timestamp=COLUMN, or leave data.cut_by out."
        problem = Problem("a column of times", "none", todo, Where(events.table.file, field="data.cut_by"))
        raise DataError("The rows cannot be cut by time.", [problem])
    if unknown or by == "hash":
        pairs = [events.users, [str(item) for item in events.items.tolist()]]
        order = np.argsort(hash_texts(pairs), kind="stable")
    found, end = {}, len(order)
    for name, fraction in fractions.items():
        start = max(0, end - max(1, round(fraction * len(order))))
        found[name] = events.take(np.sort(order[start:end]))
        end = start
    return {TRAIN: events.take(np.sort(order[:end])), **dict(reversed(list(found.items())))}
