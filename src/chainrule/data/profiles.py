"""Who users are, told by what they liked in train, and how lists of candidates are drawn for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from chainrule.core.recipe import Section
from chainrule.data.events import Catalogue, Events
from chainrule.data.split import TRAIN


class Sampling(Section):
    """How lists are made of what users did; of queries with their candidates nothing is drawn.

    Attributes:
        positive: the lowest rating that counts as liked; null for 4 of 5, 1 of 1, and everything without ratings.
        negatives: how many items that he has not rated stand beside each that a user liked, in train.
        candidates: how many stand beside all that he liked in another split; null for all there are.
        history: how many of the items that he liked tell who a user is.
        seed: decides what is drawn.
    """

    positive: float | None = None
    negatives: int = Field(default=4, ge=1)
    candidates: int | None = Field(default=100, ge=1)
    history: int = Field(default=10, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True)
class Profiles:
    """What each user liked in train, in the order of time, and rated anywhere.

    Attributes:
        liked: user -> places in train's events.
        rated: user -> item numbers.
        users, items: that train has.
        history: how many items tell who a user is.
    """

    train: Events
    catalogue: Catalogue
    liked: Mapping[str, np.ndarray]
    rated: Mapping[str, set[int]]
    users: frozenset[str]
    items: frozenset[int]
    history: int

    @classmethod
    def of(cls, splits: Mapping[str, Events], catalogue: Catalogue, history: int) -> Profiles:
        """From the events of all splits; what users liked is taken from train alone."""
        train, rated = splits[TRAIN], defaultdict[str, set[int]](set)
        for events in splits.values():
            for user, item in zip(events.users, events.items.tolist(), strict=True):
                rated[user].add(item)
        liked = {user: places[train.liked[places]] for user, places in train.by_user().items()}
        users, items = frozenset(train.users), frozenset(train.items.tolist())
        return cls(train, catalogue, liked, rated, users, items, history)

    def text(self, user: str, time: float, without: Sequence[int]) -> tuple[str, int]:
        """A user as a text, and how many items tell of him.

        They are the last that he liked before a time, the newest first; at any time where that is NaN.

        Args:
            without: items that must not be among them.
        """
        places = self.liked.get(user, np.zeros(0, np.int64))
        if not np.isnan(time):
            places = places[self.train.times[places] < time]
        items = self.train.items[places]
        before = items[~np.isin(items, without)].tolist()[::-1][: self.history]
        told = "; ".join(self.catalogue.titles[item] for item in before)
        return ". ".join(part for part in (told, self.catalogue.attributes.get(user, "")) if part), len(before)
