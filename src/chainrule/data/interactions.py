"""Rows of a user, an item and perhaps a rating and a time: what a user liked, among what he has not rated.

A list of train is one item that a user liked with some that he has not rated; a list of another split is all that a
user liked there with more of these. The user is told by what he liked in train before, and by his attributes. Items
are drawn once, by a seed, and never those that the user has rated in any split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from chainrule.core.lists import NEW_ITEM, NEW_USER
from chainrule.core.recipe import Data
from chainrule.data.event_findings import tell
from chainrule.data.events import Events, cut_events, lowest_positive, read_catalogue, read_events
from chainrule.data.flaws import Flaw, shorten
from chainrule.data.lists import Candidate, CandidateList, Grouped, list_table
from chainrule.data.profiles import Profiles, Sampling
from chainrule.data.split import TRAIN
from chainrule.data.table import Table
from chainrule.data.targets import read_targets
from chainrule.errors import DataError, Problem, Where


def lists_of(
    name: str, events: Events, profiles: Profiles, options: Sampling
) -> tuple[list[CandidateList], list[Flaw]]:
    """The lists of a split, and the flaws of users who liked nothing in it or have rated everything."""
    found: list[CandidateList] = []
    flaws: list[Flaw] = []
    for user, places in events.by_user().items():
        liked = places[events.liked[places]]
        flaw = _unusable(events, user, places, liked) or _sated(events, user, liked, profiles)
        if flaw is not None:
            flaws.append(flaw)
            continue
        draw = np.random.default_rng([options.seed, _hash(f"{name}\0{user}")])
        groups = np.split(liked, len(liked)) if name == TRAIN else [liked]
        count = options.negatives if name == TRAIN else options.candidates
        for group in groups:
            drawn = _drawn(draw, profiles.rated[user], len(profiles.catalogue), count)
            found.append(_list(events, user, group, drawn, profiles))
    return sorted(found, key=lambda each: each.place), flaws


def _list(events: Events, user: str, liked: np.ndarray, drawn: Sequence[int], profiles: Profiles) -> CandidateList:
    own, catalogue = events.items[liked].tolist(), profiles.catalogue
    query, told = profiles.text(user, float(events.times[liked].min()), own)
    new = NEW_USER * (user not in profiles.users)
    each = [
        Candidate(
            catalogue.ids[item],
            catalogue.texts[item],
            item,
            float(relevance),
            new + NEW_ITEM * (item not in profiles.items),
        )
        for items, relevance in ((own, 1), (drawn, 0))
        for item in items
    ]
    key = json.dumps([user, [catalogue.ids[item] for item in own]])
    return CandidateList(int(events.places[liked].min()), key, query, each, user, told)


def _drawn(draw: np.random.Generator, rated: set[int], items: int, count: int | None) -> list[int]:
    """So many items that are not among those rated, each once; all of them where there are fewer."""
    free = items - len(rated)
    if count is None or count >= free or 2 * len(rated) > items:
        others = np.setdiff1d(np.arange(items), np.fromiter(rated, np.int64, len(rated)))
        chosen = others if count is None else draw.permutation(others)[:count]
        return [int(item) for item in chosen]
    found: dict[int, None] = {}
    while len(found) < count:
        found |= {item: None for item in draw.integers(items, size=2 * count).tolist() if item not in rated}
    return list(found)[:count]


def _unusable(events: Events, user: str, places: np.ndarray, liked: np.ndarray) -> Flaw | None:
    if len(liked):
        return None
    place = int(events.places[places].min())
    best = events.ratings[places].max()
    got = f"{len(places):,} of the user {shorten(user)}, the highest rated {best:g}"
    todo = "Lower task.options.positive, remove the rows of this user, or pass --on-bad-row skip."
    expected = f"a row with a rating of at least {events.positive:g}"
    problem = Problem(expected, got, todo, events.table.where(place, "rating"))
    return Flaw("no-positive", int(events.table.rows[place]), problem)


def _sated(events: Events, user: str, liked: np.ndarray, profiles: Profiles) -> Flaw | None:
    if len(profiles.rated[user]) < len(profiles.catalogue):
        return None
    place = int(events.places[liked].min())
    todo = "Add items, or remove the rows of this user."
    problem = Problem(
        "an item that the user has not rated", f"none for {shorten(user)}", todo, events.table.where(place, "user")
    )
    return Flaw("no-negative", int(events.table.rows[place]), problem)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def group_interactions(
    tables: Mapping[str, Table], beside: Mapping[str, Table], fields: Mapping[str, str], spec: Data, options: Sampling
) -> Grouped:
    """The lists of each split; a single table is cut into splits first, and validation out of train where it lacks.

    Args:
        tables: split -> rows, or a single table under "all".
        beside: the tables of items and users.
        fields: field -> column.

    Raises:
        DataError: there is no train split, no table of items, or no way to tell what was liked.
    """
    grouped = Grouped()
    first = next(iter(tables.values()))
    if not tables.keys() & {TRAIN, "all"}:
        todo = "Give the folder, or the file, that the model was trained on, or one with a train split."
        problem = Problem(
            "a train split, which tells what users liked before", ", ".join(tables), todo, Where(first.file)
        )
        raise DataError("What users did cannot be read without a train split.", [problem])
    catalogue, of_files, cleaned = read_catalogue(beside, first.file, spec.clean)
    grouped.findings += cleaned
    for name, flaws in of_files.items():
        grouped.note(flaws, beside[name], None, spec.on_bad_row)
    positive = positive_of(tables, fields, options)
    splits: dict[str, Events] = {}
    for name, table in tables.items():
        splits[name], flaws = read_events(table, fields, catalogue, positive)
        grouped.note(flaws, table, None if name == "all" else name, spec.on_bad_row)
    cut = _with_cut(splits, spec)
    profiles = Profiles.of(cut, catalogue, options.history)
    for name, events in cut.items():
        lists, flaws = lists_of(name, events, profiles, options)
        grouped.tables[name] = list_table(events.table, lists)
        grouped.note(flaws, events.table, name, spec.on_bad_row)
        made = None if cut.keys() == splits.keys() else spec.cut_by
        grouped.findings += tell(name, cut, lists, options.candidates, made)
    return grouped


def positive_of(tables: Mapping[str, Table], fields: Mapping[str, str], options: Sampling) -> float:
    """The lowest rating that counts as liked.

    Raises:
        DataError: it cannot be told from the ratings, and was not asked.
    """
    if "rating" not in fields:
        return 1.0
    column = fields["rating"]
    values = (read_targets(table, "rating", column, "number")[0] for table in tables.values())
    ratings = (float(value) for found in values for value in np.asarray(found))
    where = Where(next(iter(tables.values())).file, field="rating")
    return lowest_positive(ratings, options.positive, where)


def _with_cut(splits: Mapping[str, Events], spec: Data) -> dict[str, Events]:
    if "all" in splits:
        fractions = {"test": spec.test_fraction, "validation": spec.validation_fraction}
        return cut_events(splits["all"], fractions, spec.cut_by)
    if "validation" in splits:
        return dict(splits)
    made = cut_events(splits[TRAIN], {"validation": spec.validation_fraction}, spec.cut_by)
    return made | {name: events for name, events in splits.items() if name != TRAIN}
