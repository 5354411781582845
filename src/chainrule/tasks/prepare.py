"""Where rows meet the tokenizer: a task's splits, checked, counted and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.core.recipe import Recipe, parse_options
from chainrule.core.report import CheckReport, Finding, Rendering
from chainrule.core.spans import Answers
from chainrule.core.task import Task
from chainrule.data.chat import MESSAGES
from chainrule.data.check import length_finding
from chainrule.data.encode import Encoded
from chainrule.data.entities import TOKENS, units_of
from chainrule.data.flaws import MAX_PROBLEMS, Flaw, agree, count_rows, finding, summarise
from chainrule.data.load import Dataset, Split, load
from chainrule.data.tokens import encode_once
from chainrule.errors import DataError, Problem, RecipeError, Where
from chainrule.models.load import LONGEST, load_processor, load_tokenizer, token_limit
from chainrule.models.scratch import SCRATCH, options_of, refuse_misfit
from chainrule.tasks.conversation import special_tokens, tell_tools, tells_tools_first
from chainrule.tasks.pictures import height_of
from chainrule.tasks.unlabelled import Unlabelled, unlabelled_rows
from chainrule.tasks.windows import LongTexts, Windowed


@dataclass(frozen=True)
class Prepared:
    """Splits ready for a model.

    Attributes:
        report: the check of the rows with what the tokenizer adds: rows longer than `max_length`, and rows of which
            nothing can be learned.
        encoded: split name -> tokenised rows, for the splits that were asked for.
        model_options: the recipe's, with what the training rows decide.
        unlabelled: further rows for a student; None for none.
    """

    dataset: Dataset
    report: CheckReport
    tokenizer: Any
    max_length: int
    encoded: dict[str, Encoded]
    model_options: dict[str, Any]
    unlabelled: Unlabelled | None = None


@dataclass(frozen=True)
class EncodedSplit:
    """Rows of a split with their tokens, what was noticed about them, and the rows that cannot be used."""

    split: Split
    encoded: Encoded
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]


def prepare(
    recipe: Recipe, source: Any, task: Task, splits: Sequence[str] | None = None, *, reserved: int = 0
) -> Prepared:
    """Read, check and encode.

    Args:
        source: what to read instead of `recipe.data.source`.
        splits: which splits to encode; None for all.
        reserved: positions that the model needs for something else than a row's tokens.

    Raises:
        DataError: the rows are wrong.
        ModelError: there is no such tokenizer, or it has no room for `model.max_length` tokens.
    """
    dataset = load(source, recipe.data, task, options=parse_options(task.options, recipe.task, "task"))
    dataset.require_ok()
    prepared = with_tokens(dataset, recipe, task, splits, reserved=reserved)
    replace(dataset, report=prepared.report).require_ok()
    rows = unlabelled_rows(prepared.dataset, recipe, task, prepared.tokenizer, prepared.max_length)
    if rows is None:
        return prepared
    report = prepared.report.model_copy(update={"findings": (*prepared.report.findings, *rows.findings)})
    return replace(prepared, dataset=replace(prepared.dataset, report=report), report=report, unlabelled=rows)


def with_tokens(
    dataset: Dataset,
    recipe: Recipe,
    task: Task,
    splits: Sequence[str] | None = None,
    *,
    reserved: int = 0,
    shown: int = 1,
) -> Prepared:
    """Encode the usable rows of a dataset and add what their tokens tell to its report.

    Args:
        shown: how many rows of the first split to show with what is learned of them.
    """
    tokenizer, options = tokenizer_for(recipe, task, dataset.splits["train"])
    if task.sees:
        limit = _height(recipe, tokenizer)
    elif options:
        limit = recipe.model.max_length or LONGEST
    else:
        limit = token_limit(recipe.model.name, tokenizer, recipe.model.max_length, reserved)
    encoded, findings, problems = {}, list(dataset.report.findings), list(dataset.report.problems)
    findings += [_tools_told()] if task.converses and tells_tools_first(tokenizer) else []
    summaries, kept = dict(dataset.report.splits), dict(dataset.splits)
    examples: list[Rendering] = []
    for name, split in dataset.splits.items():
        if (splits is not None and name not in splits) or not len(split):
            continue
        done = encode_split(task, tokenizer, split, limit, name, recipe.data.on_bad_row)
        kept[name], encoded[name] = done.split, done.encoded
        findings += done.findings
        problems += done.problems
        if not examples and task.marked is not None:
            for place, row in enumerate(done.split.places.rows[:shown].tolist()):
                text = task.marked(tokenizer, done.encoded.take(np.array([place])), dataset.labels)
                examples.append(Rendering(split=name, row=row, text=text))
        lengths = {**summaries[name].lengths, **_token_lengths(done.encoded)}
        summaries[name] = summaries[name].model_copy(update={"rows": len(done.split), "lengths": lengths})
    update = {
        "findings": tuple(findings),
        "problems": tuple(problems[:MAX_PROBLEMS]),
        "splits": summaries,
        "max_length": None if task.sees else limit,
        "examples": tuple(examples),
    }
    report = dataset.report.model_copy(update=update)
    return Prepared(replace(dataset, splits=kept, report=report), report, tokenizer, limit, encoded, options)


def tokenizer_for(recipe: Recipe, task: Task, train: Split) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a recipe's model, and the model's options with what the training rows decide.

    Args:
        train: the training rows, of which a model without pretrained weights gets its vocabulary.

    Raises:
        ModelError: there is no such tokenizer.
        RecipeError: the model has no such options, or does not go together with the rest of the recipe.
    """
    refuse_misfit(recipe, task)
    options = options_of(recipe.model)
    if options is None:
        name = recipe.model.name
        tokenizer = load_processor(name) if task.sees else load_tokenizer(name, recipe.structure.add_tokens)
    else:
        marked = {TOKENS: [units_of(cell)[0] for cell in train.inputs[TOKENS]]} if TOKENS in train.inputs else None
        tokenizer, options = SCRATCH[recipe.model.name].reader(options, marked or train.inputs)
    if task.prepare_tokenizer is not None:
        task.prepare_tokenizer(tokenizer)
    if task.converses:
        tell_tools(tokenizer, train.inputs[MESSAGES])
    return tokenizer, {} if options is None else options.model_dump(mode="json")


def _tools_told() -> Finding:
    message = (
        "The model's chat template tells of no tools: they are told in a system message before the conversation, by a "
        "template that is saved with the model."
    )
    return finding("tools-told", "info", message)


def _height(recipe: Recipe, processor: Any) -> int:
    """How many rows of pixels the model reads; RecipeError if the recipe says otherwise."""
    if recipe.structure.add_tokens:
        where, todo = Where(field="structure.add_tokens"), "Leave it out."
        raise RecipeError("Images have no tokens.", [Problem("nothing", "tokens to add", todo, where)])
    height, wanted = height_of(processor), recipe.model.max_length
    if wanted not in (None, height):
        expected, where = f"{height}, the height of what the model reads, or nothing", Where(field="model.max_length")
        raise RecipeError("Images are resized, not cut.", [Problem(expected, str(wanted), "Leave it out.", where)])
    return height


def encode_split(
    task: Task, tokenizer: Any, split: Split, limit: int, name: str | None, on_bad_row: str
) -> EncodedSplit:
    """Encode a split; rows the template refuses, or of whose reply nothing is left, are errors or are skipped."""
    encoded = encode_once(task.encode, tokenizer, split.inputs, split.targets, limit)
    found = _windowed(task, encoded, limit, name, split) or length_finding(
        encoded.full_lengths, limit, name, split.places
    )
    if found is not None and found.kind == "too-long" and task.options is LongTexts and len(split.inputs) == 1:
        todo = f"{found.todo} Or let them be read in windows: --set task.options.windows=true."
        found = found.model_copy(update={"todo": todo})
    findings = [found] if found else []
    learned = encoded.learned
    if learned is None or encoded.targets is None:
        return EncodedSplit(split, encoded, tuple(findings), ())
    if task.target.kind == "written":
        findings += _cut_targets(tokenizer, encoded, limit, name, split)
    flaws = [_unusable(split, encoded, int(row), limit) for row in np.flatnonzero(learned == 0)]
    told, problems = summarise(flaws, split=name, file=split.places.file, on_bad_row=on_bad_row)
    if flaws:
        good = np.flatnonzero(learned > 0)
        split, encoded = split.take(good), encoded.take(good)
    if not len(split) and not problems:
        problems = [Problem("rows to learn from", "none that can be used", "Raise --max-length.")]
    return EncodedSplit(split, encoded, (*findings, *told), tuple(problems))


def require_usable(done: EncodedSplit) -> None:
    """Raise DataError if rows of the split cannot be used."""
    if done.problems:
        told = " ".join(found.message for found in done.findings if found.severity == "error")
        raise DataError(f"The data cannot be used: {told or 'no rows are left.'}", done.problems[:MAX_PROBLEMS])


def _windowed(task: Task, encoded: Encoded, limit: int, name: str | None, split: Split) -> Finding | None:
    """Rows that are read in several windows or blocks, so that nothing of them is cut off."""
    blocks = task.target.kind == "reply"
    if encoded.sequences is None or not (encoded.places is not None or blocks or isinstance(task.encode, Windowed)):
        return None
    several = np.diff(encoded.sequences) > 1
    count = int(several.sum())
    if not count:
        return None
    rows = f"{count_rows(count, name)} {agree(count, 'are')} longer than {limit} tokens"
    how = "blocks" if blocks else "windows that overlap"
    message = f"{rows}: nothing is cut off, as such rows are read in {how}."
    return finding("windowed", "info", message, split=name, file=split.places.file, rows=split.places.rows[several])


def _cut_targets(tokenizer: Any, encoded: Encoded, limit: int, name: str | None, split: Split) -> list[Finding]:
    """Rows whose target lost its end, and with it the token that ends it."""
    learned, trained = encoded.learned, encoded.trained
    if learned is None or trained is None or not learned.any():
        return []
    rows = np.flatnonzero(learned)
    last = np.flatnonzero(trained)[np.cumsum(learned)[rows] - 1]
    rows = rows[~np.isin(encoded.ids[last], special_tokens(tokenizer))]
    if not len(rows):
        return []
    count = len(rows)
    message = f"{count_rows(count, name)} {agree(count, 'have')} a target that is cut to fit {limit} tokens."
    todo = "Their ends are not learned. Raise --max-length if the model allows it, or shorten these targets."
    where = {"split": name, "file": split.places.file}
    return [finding("cut-target", "warning", message, todo=todo, rows=split.places.rows[rows], **where)]


def _unusable(split: Split, encoded: Encoded, row: int, limit: int) -> Flaw:
    number, field = int(split.places.rows[row]), next(iter(split.inputs))
    where = split.places.where(row, field)
    if encoded.places is not None and row in encoded.refused:
        expected = f"a question that leaves half of {limit} tokens to its context"
        todo = "Shorten it, raise --max-length, or choose a model that reads more."
        return Flaw("long-question", number, Problem(expected, encoded.refused[row], todo, where))
    if encoded.places is not None:
        todo = "Remove this row, or choose a model whose tokenizer reads its characters."
        return Flaw("nothing-to-learn", number, Problem("a word that the tokenizer reads", "none", todo, where))
    if row in encoded.refused:
        todo = "Change the order or the roles of the turns, or choose another model."
        problem = Problem("a conversation that the chat template renders", encoded.refused[row], todo, where)
        return Flaw("bad-messages", number, problem)
    expected = f"a token of a reply among the first {limit} tokens"
    got = f"none: the turns before it are longer ({int(encoded.full_lengths[row]):,} tokens in all)"
    todo = "Raise --max-length, or shorten this row."
    return Flaw("nothing-to-learn", number, Problem(expected, got, todo, where))


def _token_lengths(encoded: Encoded) -> dict[str, float]:
    full = encoded.full_lengths
    if not len(full) or encoded.pixels is not None:
        return {}
    lengths = {"tokens_mean": round(float(full.mean()), 1), "tokens_max": float(full.max())}
    if encoded.trained is not None and not isinstance(encoded.targets, Answers):
        lengths |= {"tokens_read": float(len(encoded.ids)), "tokens_learned": float(encoded.trained.sum())}
    return lengths
