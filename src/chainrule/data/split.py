"""Cutting rows into splits: by hashes, so that the same row falls on the same side wherever it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chainrule.core.spans import Answers
from chainrule.data.targets import Labels, Values, labels_of

TRAIN = "train"


@dataclass(frozen=True)
class Cut:
    """A cut that was made, so that it can be made again.

    Attributes:
        sha256: of the file that was cut.
        hashes: split name -> (n,) uint64 hashes of its rows (inputs and target), sorted.
    """

    sha256: str | None
    hashes: dict[str, np.ndarray]

    def arrays(self) -> dict[str, np.ndarray]:
        """The hashes by split name, to be stored."""
        return dict(self.hashes)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], sha256: str | None) -> Cut:
        """The opposite of `arrays`."""
        return cls(sha256, {name: np.asarray(values, dtype=np.uint64) for name, values in arrays.items()})

    def matches(self, sha256: str | None, row_hashes: np.ndarray) -> bool:
        """Whether these are the rows that were cut: the same file, or the same set of rows."""
        if sha256 is not None and sha256 == self.sha256:
            return True
        known = np.unique(np.concatenate([*self.hashes.values(), np.array([], np.uint64)]))
        return bool(len(known)) and np.array_equal(known, np.unique(row_hashes))

    def apply(self, row_hashes: np.ndarray) -> dict[str, np.ndarray]:
        """Split name -> positions of its rows, in order. Rows that were not there when it was cut are in none."""
        return {name: np.flatnonzero(np.isin(row_hashes, hashes)) for name, hashes in self.hashes.items()}


def hash_texts(columns: Sequence[Iterable[str]]) -> np.ndarray:
    """(n,) uint64: a BLAKE2b hash of each row's texts, the same on every machine."""
    digests = bytearray()
    for cells in zip(*columns, strict=True):
        digests += hashlib.blake2b("\0".join(cells).encode("utf-8"), digest_size=8).digest()
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def strata_of(values: Values) -> np.ndarray:
    """(n,) int64: what a cut keeps in the same proportions: labels, bins of numbers, whether there is an answer."""
    if isinstance(values, np.ndarray):
        return strata_of_numbers(values) if values.ndim == 1 else np.zeros(len(values), np.int64)
    if isinstance(values, Answers):
        return values.answered.astype(np.int64)
    labels = labels_of(values)
    if labels is None:
        return np.zeros(len(values), np.int64)
    # By a row's rarest label, so that rare labels are spread first, as Sechidis, Tsoumakas and Vlahavas (2011) do.
    counts = labels.count()
    order = {name: code for code, name in enumerate(sorted(counts, key=lambda name: (counts[name], name)))}
    rarest = np.array([min((order[name] for name in names), default=-1) for names in labels.sets], np.int64)
    return np.take(rarest, labels.codes)


def strata_of_numbers(values: np.ndarray, bins: int = 10) -> np.ndarray:
    """(n,) int64: the quantile bin of each number, so that a cut keeps the spread of the targets."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])) if len(values) else np.array([])
    return np.searchsorted(edges, values, side="left").astype(np.int64)


def cut_rows(hashes: np.ndarray, strata: np.ndarray, fractions: Mapping[str, float]) -> dict[str, np.ndarray] | None:
    """Cut rows into the named parts and "train", keeping rows with equal hashes together.

    Within each stratum the groups are ordered by hash and each part takes its share from the front; shares that are
    not whole rows are rounded by largest remainder, and every stratum leaves at least one group in train.

    Args:
        hashes: (n,) uint64 of the inputs.
        strata: (n,) int64 of what each part should have in the same proportions.
        fractions: part name -> share of all rows.

    Returns:
        part name -> positions in ascending order; None if there are too few different rows to fill every part.
    """
    groups, inverse, sizes, stratum = _groups(hashes, strata)
    strata_count = int(stratum.max(initial=-1)) + 1
    rows = np.bincount(stratum, weights=sizes, minlength=strata_count)
    queues = [np.flatnonzero(stratum == code) for code in range(strata_count)]
    part = np.zeros(len(groups), dtype=np.int64)
    for number, fraction in enumerate(fractions.values(), start=1):
        for code, quota in enumerate(_quotas(rows, fraction)):
            _take(part, queues[code], sizes, quota, number)
        if not (part == number).any():
            spare = [queue for queue in queues if (part[queue] == 0).sum() > 1]
            if not spare:
                return None
            queue = max(spare, key=lambda queue: int((part[queue] == 0).sum()))
            part[queue[part[queue] == 0][0]] = number
    of_row = part[inverse]
    return {name: np.flatnonzero(of_row == number) for number, name in enumerate([TRAIN, *fractions])}


def cut_labelled(
    hashes: np.ndarray, values: Values, fractions: Mapping[str, float], times: np.ndarray | None = None
) -> dict[str, np.ndarray] | None:
    """What `cut_rows` gives for rows with these targets, with every label left in train; None if that cannot be.

    Args:
        times: (n,) seconds, for what `cut_by_time` gives instead.
    """
    parts = cut_rows(hashes, strata_of(values), fractions) if times is None else cut_by_time(hashes, times, fractions)
    labels = labels_of(values)
    if parts is not None and labels is not None:
        parts = keep_labels_in_train(parts, hashes, labels, times)
    return parts


def cut_by_time(hashes: np.ndarray, times: np.ndarray, fractions: Mapping[str, float]) -> dict[str, np.ndarray] | None:
    """Cut rows into the named parts and "train", the latest rows for the first part.

    Rows with equal hashes stay together, at the time of the latest of them; rows of the same time are in the order of
    their hashes.

    Args:
        times: (n,) seconds.
        fractions: part name -> share of all rows.

    Returns:
        As `cut_rows`.
    """
    groups, inverse, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    latest = np.full(len(groups), -np.inf)
    np.maximum.at(latest, inverse, times)
    queue = np.lexsort((groups, latest)).tolist()
    part = np.zeros(len(groups), dtype=np.int64)
    for number, fraction in enumerate(fractions.values(), start=1):
        quota, taken = max(1, round(len(hashes) * fraction)), 0
        while len(queue) > 1 and (not taken or taken + sizes[queue[-1]] <= quota):
            group = queue.pop()
            part[group] = number
            taken += int(sizes[group])
        if not taken:
            return None
    of_row = part[inverse]
    return {name: np.flatnonzero(of_row == number) for number, name in enumerate([TRAIN, *fractions])}


def cut_folds(hashes: np.ndarray, strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deal rows out to folds, keeping rows with equal hashes together.

    Stratum by stratum, in an order that the seed decides, each group goes to the fold that has the fewest rows of its
    stratum, and of those to the smallest. So every fold has a group of each stratum that has at least as many groups.

    Args:
        hashes: (n,) uint64 of the inputs.
        strata: (n,) int64 of what each fold should have in the same proportions.

    Returns:
        (n,) int64 the fold of each row, from 0 on.
    """
    groups, inverse, sizes, stratum = _groups(hashes, strata)
    order = np.argsort(hash_texts([[f"{seed} {group}" for group in groups.tolist()]]), kind="stable")
    held, fold, current = np.zeros(folds, np.int64), np.zeros(len(groups), np.int64), -1
    own = held
    for group in order[np.argsort(stratum[order], kind="stable")].tolist():
        if stratum[group] != current:
            current, own = stratum[group], np.zeros(folds, np.int64)
        fold[group] = np.lexsort((held, own))[0]
        own[fold[group]] += sizes[group]
        held[fold[group]] += sizes[group]
    return np.take(fold, inverse)


def _groups(hashes: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows with equal hashes as one: their hashes in order, the group of each row, the size and stratum of each group.

    Strata are numbered from 0 on; a group whose rows are of several is in the first.
    """
    groups, inverse, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    stratum = np.full(len(groups), np.iinfo(np.int64).max)
    np.minimum.at(stratum, inverse, strata)
    return groups, inverse, sizes, np.unique(stratum, return_inverse=True)[1]


def keep_labels_in_train(
    parts: dict[str, np.ndarray], hashes: np.ndarray, labels: Labels, times: np.ndarray | None = None
) -> dict[str, np.ndarray] | None:
    """Move rows into train until every label occurs there: the group with the smallest hash, label by label.

    Args:
        parts: what `cut_rows` returned.
        times: (n,) seconds, for the earliest group instead.

    Returns:
        The parts, or None if one of them is empty then.
    """
    part = np.zeros(len(hashes), dtype=np.int64)
    for number, indices in enumerate(parts.values()):
        part[indices] = number
    first = list(parts).index(TRAIN)
    seen = set(labels[part == first].count())
    has_more = np.array([not seen.issuperset(names) for names in labels.sets], dtype=bool)
    rows = np.flatnonzero(has_more[labels.codes])
    order = hashes if times is None else times
    for row in rows[np.argsort(order[rows], kind="stable")].tolist():
        if not seen.issuperset(labels.sets[labels.codes[row]]):
            group = hashes == hashes[row]
            part[group] = first
            seen.update(labels[group].count())
    moved = {name: np.flatnonzero(part == number) for number, name in enumerate(parts)}
    return moved if all(len(indices) for indices in moved.values()) else None


def _quotas(rows: np.ndarray, fraction: float) -> np.ndarray:
    exact = rows * fraction
    quotas = np.floor(exact).astype(np.int64)
    short = max(1, round(float(rows.sum()) * fraction)) - int(quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[: max(short, 0)]] += 1
    return quotas


def _take(part: np.ndarray, queue: np.ndarray, sizes: np.ndarray, quota: int, number: int) -> None:
    free = queue[part[queue] == 0]
    taken = 0
    for group in free[:-1]:  # the last one stays in train
        if taken >= quota:
            break
        if taken + sizes[group] <= quota:
            part[group] = number
            taken += int(sizes[group])
