"""Where rows meet the tokenizer: a task's splits, checked, counted and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.core.recipe import Recipe
from chainrule.core.report import CheckReport
from chainrule.core.task import Task
from chainrule.data.check import length_finding
from chainrule.data.encode import Encoded, encode
from chainrule.data.load import Dataset, load
from chainrule.models.load import load_tokenizer, token_limit


@dataclass(frozen=True)
class Prepared:
    """Splits ready for a model.

    Attributes:
        report: the check of the rows with what the tokenizer adds: rows longer than `max_length`.
        encoded: split name -> tokenised rows, for the splits that were asked for.
    """

    dataset: Dataset
    report: CheckReport
    tokenizer: Any
    max_length: int
    encoded: dict[str, Encoded]


def prepare(recipe: Recipe, source: Any, task: Task, splits: Sequence[str] | None = None) -> Prepared:
    """Read, check and encode.

    Args:
        source: what to read instead of `recipe.data.source`.
        splits: which splits to encode; None for all.

    Raises:
        DataError: the rows are wrong.
        ModelError: there is no such tokenizer, or it has no room for `model.max_length` tokens.
    """
    dataset = load(source, recipe.data, task)
    dataset.require_ok()
    return with_tokens(dataset, recipe, splits)


def with_tokens(dataset: Dataset, recipe: Recipe, splits: Sequence[str] | None = None) -> Prepared:
    """Encode the usable rows of a dataset and add what their lengths tell to its report."""
    tokenizer = load_tokenizer(recipe.model.name)
    limit = token_limit(recipe.model.name, tokenizer, recipe.model.max_length)
    encoded, findings, summaries = {}, [], dict(dataset.report.splits)
    for name, split in dataset.splits.items():
        if (splits is not None and name not in splits) or not len(split):
            continue
        encoded[name] = encode(tokenizer, split.inputs, split.targets, limit)
        full = encoded[name].full_lengths
        found = length_finding(full, limit, name, split.table)
        findings += [found] if found else []
        tokens = {"tokens_mean": round(float(full.mean()), 1), "tokens_max": float(full.max())}
        lengths = {**summaries[name].lengths, **tokens}
        summaries[name] = summaries[name].model_copy(update={"lengths": lengths})
    update = {"findings": (*dataset.report.findings, *findings), "splits": summaries, "max_length": limit}
    return Prepared(dataset, dataset.report.model_copy(update=update), tokenizer, limit, encoded)
