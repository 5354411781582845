"""Rows without labels, of which a student learns what its teachers say and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from chainrule.core.recipe import Recipe
from chainrule.core.report import Finding
from chainrule.core.task import Task
from chainrule.data.batch import IGNORED
from chainrule.data.check import length_finding
from chainrule.data.encode import Encoded, joined
from chainrule.data.flaws import agree, count_rows, finding
from chainrule.data.load import Dataset
from chainrule.data.split import hash_texts
from chainrule.data.stream import load_inputs
from chainrule.data.table import Places
from chainrule.data.texts import Texts
from chainrule.data.tokens import encode_once
from chainrule.data.variants import variants_of
from chainrule.errors import DataError, Problem, RecipeError, Where

KINDS = ("class", "classes", "number")  # of targets, where a row has one


@dataclass(frozen=True)
class Unlabelled:
    """Rows without labels, ready for a model.

    Attributes:
        encoded: their tokens; no targets.
        hashes: (n,) uint64 of the inputs.
    """

    inputs: dict[str, Texts]
    encoded: Encoded
    hashes: np.ndarray
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        return len(self.hashes)

    def hollow(self, targets: np.ndarray) -> Encoded:
        """The rows with targets that say that there are none.

        Args:
            targets: of the labelled rows.
        """
        whole = np.issubdtype(targets.dtype, np.integer)
        none = np.full((len(self), *targets.shape[1:]), IGNORED if whole else np.nan, dtype=targets.dtype)
        return replace(self.encoded, targets=none)


def unlabelled_rows(dataset: Dataset, recipe: Recipe, task: Task, tokenizer: Any, limit: int) -> Unlabelled | None:
    """What a recipe's student learns without labels: rows of a file, and changed copies of the training rows.

    Args:
        limit: the tokens of a row that are read.

    Raises:
        RecipeError: the task's rows have no target as a whole.
        DataError: nothing can be read, or rows cannot be used, or none is left.
    """
    options = recipe.distillation
    if not options.teachers or (options.unlabelled is None and not options.variants):
        return None  # without teachers nothing is known of them
    if task.target.kind not in KINDS or task.sees:
        where = Where(field="distillation.unlabelled" if options.variants == 0 else "distillation.variants")
        problem = Problem("a task whose rows are texts with one target each", task.name, "Leave it out.", where)
        raise RecipeError("Only labelled rows can be learned here.", [problem])
    found = []
    if options.unlabelled is not None:
        found.append(read_unlabelled(options.unlabelled, dataset, recipe, task, tokenizer, limit))
    if options.variants and (made := make_variants(dataset, recipe, task, tokenizer, limit)):
        found.append(made)
    return _all_of(found) if len(found) > 1 else next(iter(found), None)


def _all_of(parts: Sequence[Unlabelled]) -> Unlabelled:
    return Unlabelled(
        {name: Texts.of(chain.from_iterable(part.inputs[name] for part in parts)) for name in parts[0].inputs},
        joined([part.encoded for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        tuple(chain.from_iterable(part.findings for part in parts)),
    )


def make_variants(dataset: Dataset, recipe: Recipe, task: Task, tokenizer: Any, limit: int) -> Unlabelled | None:
    """Changed copies of the training rows that differ from one another and from all rows of the data.

    None where there is none, as of rows of one word each.
    """
    texts = variants_of(dataset.splits["train"].inputs, recipe.distillation.variants, recipe.seed)
    hashes = hash_texts(list(texts.values()))
    known = np.concatenate([split.hashes for split in dataset.splits.values()])
    _, first = np.unique(hashes, return_index=True)
    kept = np.sort(first[~np.isin(hashes[first], known)])
    if not len(kept):
        return None
    inputs = {name: Texts.of(values[place] for place in kept.tolist()) for name, values in texts.items()}
    encoded = encode_once(task.encode, tokenizer, inputs, None, limit)
    message = (
        f"{count_rows(len(kept), None)} made of training rows {agree(len(kept), 'are')} learned from the teachers."
    )
    return Unlabelled(inputs, encoded, hashes[kept], (finding("variants", "info", message),))


def read_unlabelled(path: str, dataset: Dataset, recipe: Recipe, task: Task, tokenizer: Any, limit: int) -> Unlabelled:
    """Rows that are not among those of a dataset, checked as those to predict are.

    Raises:
        DataError: nothing can be read, or rows cannot be used, or none is left.
    """
    found = load_inputs(
        path, task, dataset.fields, named=recipe.data.fields, on_bad_row=recipe.data.on_bad_row, clean=recipe.data.clean
    )
    names = tuple(dataset.splits["train"].inputs)
    pieces = list(found)
    inputs = {name: Texts.of(chain.from_iterable(texts[name] for _, texts in pieces)) for name in names}
    places = _together([table.places for table, _ in pieces])
    hashes = hash_texts(list(inputs.values()))
    kept, told = _not_among(hashes, dataset, places)
    if not len(kept):
        problem = Problem("rows that the data does not have already", "none", "Give other rows.", Where(file=path))
        raise DataError("There are no rows without labels to learn from.", [problem])
    places, hashes = places[kept], hashes[kept]
    inputs = {name: texts[kept] for name, texts in inputs.items()}
    encoded = encode_once(task.encode, tokenizer, inputs, None, limit)
    message = f"{count_rows(len(kept), None)} without labels {agree(len(kept), 'are')} learned from the teachers alone."
    note = finding("unlabelled", "info", message, file=places.file, rows=places.rows)
    long = length_finding(encoded.full_lengths, limit, None, places) if encoded.sequences is None else None
    findings = (note, *told, *found.findings, *([long] if long else []))
    return Unlabelled(inputs, encoded, hashes, findings)


def _not_among(hashes: np.ndarray, dataset: Dataset, places: Places) -> tuple[np.ndarray, list[Finding]]:
    """The positions of rows that no split has, and what is told of the others."""
    left, findings = np.ones(len(hashes), dtype=bool), []
    for name, split in dataset.splits.items():
        there = left & np.isin(hashes, split.hashes)
        count = int(there.sum())
        if not count:
            continue
        left &= ~there
        why = "as they are learned with their labels" if name == "train" else "so that what judges stays unseen"
        rows = f"{count_rows(count, None)} without labels {agree(count, 'stand')} in {name}, too"
        message = f"{rows}: left out, {why}."
        findings.append(finding("unlabelled-known", "info", message, file=places.file, rows=places.rows[there]))
    return np.flatnonzero(left), findings


def _together(parts: Iterable[Places]) -> Places:
    known = list(parts)
    lines = [part.lines for part in known if part.lines is not None]
    rows = np.concatenate([part.rows for part in known])
    return Places(known[0].file, rows, np.concatenate(lines) if len(lines) == len(known) else None)
