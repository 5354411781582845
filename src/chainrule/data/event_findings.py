"""What a person should know of what users did before a model is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chainrule.core.lists import NEW_ITEM, NEW_USER
from chainrule.core.report import Finding
from chainrule.data.events import Events
from chainrule.data.flaws import agree, count_rows, finding
from chainrule.data.lists import CandidateList
from chainrule.data.split import TRAIN


def tell(
    name: str, splits: Mapping[str, Events], lists: Sequence[CandidateList], candidates: int | None, made: str | None
) -> list[Finding]:
    """All findings about the events of a split and the lists that were made of them.

    Args:
        candidates: how many items were to be drawn for each list; None for all.
        made: by what splits were to be cut here (`Data.cut_by`); None where they were given.
    """
    events, train = splits[name], splits[TRAIN]
    found = [_liked(name, events, lists)]
    if name == TRAIN:
        return [*found, *([] if made is None else [_cut(splits, made)])]
    return [
        *found,
        _candidates(name, events, lists, candidates),
        *_later(name, events, train),
        *_again(name, events, train),
        *_cold(name, events, train, lists),
    ]


def _liked(name: str, events: Events, lists: Sequence[CandidateList]) -> Finding:
    rule = "every row counts as liked, as there are no ratings"
    if events.rated:
        rule = f"a rating of at least {events.positive:g} counts as liked (task.options.positive)"
    count = int(events.liked.sum())
    message = f"{count:,} of {count_rows(len(events), name)} are positive: {rule}. They make {len(lists):,} lists."
    return finding("positives", "info", message, split=name, file=events.table.file)


def _candidates(name: str, events: Events, lists: Sequence[CandidateList], asked: int | None) -> Finding:
    sizes = [len(each.candidates) for each in lists] or [0]
    beside = "all items" if asked is None else f"up to {asked:,} items, drawn by task.options.seed,"
    message = (
        f"A list of {name} is all that a user liked there and {beside} that he has rated in no split: {min(sizes):,} "
        f"to {max(sizes):,} candidates, {np.mean(sizes):,.1f} in the mean. Metrics rank these, and no others."
    )
    return finding("candidates", "info", message, split=name, file=events.table.file)


def _cut(splits: Mapping[str, Events], made: str) -> Finding:
    rows = ", ".join(f"{len(events):,} {name}" for name, events in splits.items())
    hashed = made == "hash" or np.isnan(splits[TRAIN].times).all()
    by = "by hashes of user and item" if hashed else "by time, the latest rows held out"
    return finding("cut", "info", f"The rows were cut {by}: {rows}.", file=splits[TRAIN].table.file)


def _later(name: str, events: Events, train: Events) -> list[Finding]:
    """A model that is to tell the future must not have seen it."""
    if not len(events) or not len(train) or np.isnan(events.times).any() or np.isnan(train.times).any():
        return []
    first: dict[str, float] = {}
    for user, time in zip(events.users, events.times.tolist(), strict=True):
        first[user] = min(time, first.get(user, time))
    pairs = zip(train.users, train.times.tolist(), strict=True)
    later = np.array([time > first.get(user, np.inf) for user, time in pairs], bool)
    count = int(later.sum())
    if not count:
        return []
    users = len({train.users[row] for row in np.flatnonzero(later).tolist()})
    message = (
        f"{count_rows(count, TRAIN)} {agree(count, 'are')} later than the first row of {name} of the same user "
        f"({users:,} of {len(first):,} users): what is fitted on train knows of the future."
    )
    todo = "Cut by time: give a single file with timestamps, or splits that follow each other in time."
    return [finding("time-leak", "warning", message, todo=todo, split=name, file=train.table.file)]


def _again(name: str, events: Events, train: Events) -> list[Finding]:
    known = set(zip(train.users, train.items.tolist(), strict=True))
    again = np.array([pair in known for pair in zip(events.users, events.items.tolist(), strict=True)], bool)
    count = int(again.sum())
    if not count:
        return []
    message = f"{count_rows(count, name)} {agree(count, 'repeat')} a user with an item of train."
    todo = f"Remove them from train or from {name}: what was seen is no recommendation."
    rows = events.table.rows[events.places[again]]
    return [
        finding("repeated-interaction", "warning", message, todo=todo, split=name, file=events.table.file, rows=rows)
    ]


def _cold(name: str, events: Events, train: Events, lists: Sequence[CandidateList]) -> list[Finding]:
    new_users = {each.user for each in lists if any(item.cold & NEW_USER for item in each.candidates)}
    of_items = [item for each in lists for item in each.candidates if item.relevance > 0 and item.cold & NEW_ITEM]
    silent = sum(not each.history for each in lists)
    found = []
    if new_users or of_items:
        users = count_rows(len(new_users), None, "user")
        items = count_rows(len({item.id for item in of_items}), None, "liked item")
        message = (
            f"Cold start: {users} and {items} of {name} without a row in train. They are scored with the others, and "
            "apart from them in the report."
        )
        found.append(finding("cold-start", "info", message, split=name, file=events.table.file))
    if silent:
        message = (
            f"{count_rows(silent, name, 'list')} {agree(silent, 'have')} no item that the user liked in train before: "
            "only his attributes tell who he is."
        )
        found.append(finding("no-history", "info", message, split=name, file=events.table.file))
    return found
