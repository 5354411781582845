"""A data set dealt out for cross-validation: a data set for each fold, which is the test split of that one alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from chainrule.core.task import FieldKind
from chainrule.data.flaws import shorten
from chainrule.data.lists import USER
from chainrule.data.load import Dataset, Split
from chainrule.data.split import TRAIN, cut_folds, cut_labelled, strata_of
from chainrule.data.targets import Values, decode_targets, labels_of
from chainrule.errors import DataError, Problem, Where

FIELD = "training.folds"


def fold_datasets(
    dataset: Dataset, kind: FieldKind, count: int, validation_fraction: float, seed: int
) -> list[Dataset]:
    """One data set for each fold: "test" is the fold, "validation" is cut out of the other folds, "train" is the rest.

    All rows are dealt out, except those of a test split that was given as such. Rows with the same inputs are in the
    same fold and on the same side of the cut.

    Args:
        kind: of the task's target; no reply.
        count: how many folds, at least 2.
        validation_fraction: of the rows outside the fold.
        seed: of the order in which rows are dealt out.

    Raises:
        DataError: there are too few rows, or too few of a label; or what a user is told by are other rows.
    """
    if USER in dataset.splits[TRAIN].inputs:
        todo = "Leave --folds out: these rows are cut by time, or into the splits of the folder."
        problem = Problem(
            "rows that stand for themselves", "users with what they liked before", todo, Where(field=FIELD)
        )
        raise DataError("What users did cannot be dealt out to folds.", [problem])
    was_cut = dataset.cut is not None and "test" in dataset.cut.hashes
    pooled = Split.joined([part for name, part in dataset.splits.items() if name != "test" or was_cut])
    values = decode_targets(pooled.targets, kind, dataset.labels)
    _require_enough(pooled, values, count)
    fold_of = cut_folds(pooled.hashes, strata_of(values), count, seed)
    made = []
    for fold in range(count):
        others = np.flatnonzero(fold_of != fold)
        parts = cut_labelled(pooled.hashes[others], values[others], {"validation": validation_fraction})
        if parts is None or not _has_all_labels(values, others[parts[TRAIN]]):
            raise _too_few(
                pooled,
                "rows enough to cut validation out of the other folds, with every label left to train on",
                f"{len(np.unique(pooled.hashes[others])):,} different rows outside fold {fold + 1}",
                "Add rows, or choose another number of folds.",
            )
        splits = {name: pooled.take(others[parts[name]]) for name in (TRAIN, "validation")}
        splits["test"] = pooled.take(np.flatnonzero(fold_of == fold))
        made.append(replace(dataset, splits=splits, cut=None))
    return made


def _require_enough(pooled: Split, values: Values, count: int) -> None:
    rows = len(np.unique(pooled.hashes))
    if rows < count:
        raise _too_few(pooled, f"at least {count} different rows", f"{rows:,}", _advice(rows))
    few = {name: number for name, number in _different_rows(pooled, values) if number < count}
    if few:
        rarest = sorted(few, key=lambda name: (few[name], name))
        shown = ", ".join(f"{few[name]} of {shorten(name)}" for name in rarest[:5])
        more = f" and as few of {len(rarest) - 5:,} more labels" if len(rarest) > 5 else ""
        expected = f"at least {count} different rows of every label"
        raise _too_few(pooled, expected, shown + more, _advice(few[rarest[0]]))


def _different_rows(pooled: Split, values: Values) -> Iterator[tuple[str, int]]:
    """Each label, and how many different inputs have it."""
    labels = labels_of(values)
    if labels is not None:
        for name in labels.count():
            has = np.array([name in names for names in labels.sets], dtype=bool)[labels.codes]
            yield name, len(np.unique(pooled.hashes[has]))


def _has_all_labels(values: Values, rows: np.ndarray) -> bool:
    labels = labels_of(values)
    return labels is None or labels[rows].count().keys() == labels.count().keys()


def _advice(most: int) -> str:
    return f"Choose at most --folds {most}, or add rows." if most > 1 else "Add rows, or leave --folds out."


def _too_few(pooled: Split, expected: str, got: str, todo: str) -> DataError:
    problem = Problem(expected, got, todo, Where(file=pooled.places.file, field=FIELD))
    return DataError("There are too few rows for so many folds.", [problem])
