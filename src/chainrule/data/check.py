"""What a person should know about the rows before training on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chainrule.core.lists import Lists
from chainrule.core.report import Finding, SplitSummary
from chainrule.core.spans import Answers
from chainrule.core.task import Task
from chainrule.data.chat import MESSAGES, turns_of
from chainrule.data.entities import TOKENS, units_of
from chainrule.data.flaws import agree, count_rows, finding, shorten
from chainrule.data.images import IMAGE
from chainrule.data.relations import relation_findings
from chainrule.data.rows import Rows
from chainrule.data.table import Places
from chainrule.data.targets import Entities, Labels, labels_of
from chainrule.data.texts import Texts
from chainrule.data.written import references_of
from chainrule.errors import Problem, Where

IMBALANCE = 10
_ONE = {"entities": "way to mark them", "answers": "list of answers"}


def check_splits(splits: Mapping[str, Rows], labels: Sequence[str], task: Task) -> tuple[list[Finding], list[Problem]]:
    """All findings about usable rows: within each split, and between splits."""
    findings: list[Finding] = []
    problems: list[Problem] = []
    noun = noun_of(splits["train"])
    for name, rows in splits.items():
        findings += _duplicates(rows, name, noun)
        if not task.writes:  # a prompt may well have several good replies
            findings += _conflicts(rows, name, noun, task)
        findings += [*_answers(rows, name), *_references(rows, name, task)]
        if task.embeds and isinstance(rows.values, np.ndarray):
            findings += relation_findings(rows.inputs, rows.values, name, rows.places.file, rows.places.rows)
        if not len(rows) and name != "train":
            found, problem = _no_rows(rows, name)
            findings.append(found)
            problems.append(problem)
    findings += shared_between(splits, noun)
    one, wrong = _one_class(splits["train"], labels, task)
    findings += one
    problems += wrong
    if not one:
        findings += _class_sizes(splits["train"], labels)
    return findings, problems


def summary(rows: Rows, labels: Sequence[str], task: Task) -> SplitSummary:
    """Size and make-up of a split; lengths are in characters (all texts of a row together)."""
    counts: dict[str, int] = {}
    if isinstance(rows.values, Labels | Entities) and len(rows):
        seen = rows.values.count()
        counts = {label: seen[label] for label in labels}
    lengths: dict[str, float] = {}
    if len(rows) and IMAGE not in rows.inputs:
        characters = _characters(rows)
        lengths = {
            "characters_median": float(np.median(characters)),
            "characters_95_percent": float(np.quantile(characters, 0.95)),
            "characters_longest": float(characters.max()),
        }
    return SplitSummary(rows=len(rows), file=rows.places.file, labels=counts, lengths=lengths)


def _characters(rows: Rows) -> np.ndarray:
    if isinstance(rows.values, Texts) and MESSAGES in rows.inputs:
        contexts = zip(rows.inputs[MESSAGES], rows.values, strict=True)
        counts = (sum(len(turn["content"]) for turn in turns_of(text)) + len(end) for text, end in contexts)
        return np.fromiter(counts, dtype=np.int64)
    if TOKENS in rows.inputs:
        return np.fromiter((len(units_of(cell)[0]) for cell in rows.inputs[TOKENS]), dtype=np.int64)
    return np.fromiter((sum(map(len, texts)) for texts in zip(*rows.inputs.values(), strict=True)), dtype=np.int64)


def length_finding(lengths: np.ndarray, max_length: int, split: str | None, places: Places) -> Finding | None:
    """A "too-long" warning if rows are longer than the model will read.

    Args:
        lengths: (n,) tokens of each row, special tokens included, before any are cut off.
        max_length: the limit in tokens.
    """
    over = lengths > max_length
    count = int(over.sum())
    if count == 0:
        return None
    lost = int((lengths[over] - max_length).sum())
    longest = int(lengths.max())
    message = (
        f"{count_rows(count, split)} ({share(count, len(lengths))}) {agree(count, 'are')} longer than {max_length} "
        f"tokens; "
        f"the longest has {longest:,}. {lost:,} tokens ({share(lost, int(lengths.sum()))} of all) will be cut off."
    )
    enough = int(np.quantile(lengths, 0.99, method="higher"))
    todo = f"Raise --max-length if the model allows it ({longest} covers every row" + (
        f", {enough} covers 99 %)." if max_length < enough < longest else ")."
    )
    return finding("too-long", "warning", message, todo=todo, split=split, file=places.file, rows=places.rows[over])


def shared_between(splits: Mapping[str, Rows], noun: str) -> list[Finding]:
    """Warnings about rows of a later split whose inputs an earlier split has too."""
    findings = []
    names = list(splits)
    for position, later in enumerate(names):
        for earlier in names[:position]:
            mine, theirs = splits[later], splits[earlier]
            shared = np.isin(mine.hashes, theirs.hashes)
            count = int(shared.sum())
            if not count:
                continue
            same = int(np.isin(mine.row_hashes[shared], theirs.row_hashes).sum())
            other = "reply" if MESSAGES in mine.inputs else "target" if isinstance(mine.values, Texts) else "label"
            differing = "" if same == count else f" ({count - same:,} of them with another {other})"
            message = (
                f"{count_rows(count, later)} {agree(count, 'have')} the same {noun} as rows of {earlier}{differing}."
            )
            todo = f"Remove them from {earlier}: a score on {later} should be about rows the model has not seen."
            findings.append(
                finding(
                    "shared-between-splits",
                    "warning",
                    message,
                    todo=todo,
                    split=later,
                    file=mine.places.file,
                    rows=mine.places.rows[shared],
                )
            )
    return findings


def share(part: int, whole: int) -> str:
    """ "1.2 %"."""
    percent = 100 * part / max(whole, 1)
    return "under 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def noun_of(rows: Rows) -> str:
    """What the inputs of a row are called."""
    if MESSAGES in rows.inputs:
        return "prompt"
    if IMAGE in rows.inputs:
        return "image"
    if isinstance(rows.values, Lists):
        return "query"
    return "text" if len(rows.inputs) == 1 else "pair of texts"


def _duplicates(rows: Rows, name: str, noun: str) -> list[Finding]:
    first = np.unique(rows.hashes, return_index=True)[1]
    again = np.ones(len(rows), dtype=bool)
    again[first] = False
    count = int(again.sum())
    if not count:
        return []
    message = f"{count_rows(count, name)} {agree(count, 'repeat')} the {noun} of an earlier row."
    todo = "They count more than once. --set data.clean.exact_duplicates=true leaves out those with the same label."
    return [
        finding(
            "duplicate-input",
            "warning",
            message,
            todo=todo,
            split=name,
            file=rows.places.file,
            rows=rows.places.rows[again],
        )
    ]


def _conflicts(rows: Rows, name: str, noun: str, task: Task) -> list[Finding]:
    if not len(rows):
        return []
    _, inverse = np.unique(rows.hashes, return_inverse=True)
    first_of_row = np.unique(rows.row_hashes, return_index=True)[1]  # one position for each distinct (input, target)
    variants = np.bincount(inverse[first_of_row], minlength=int(inverse.max(initial=-1)) + 1)
    clash = variants[inverse] > 1 if len(rows) else np.zeros(0, dtype=bool)
    count = int(clash.sum())
    if not count:
        return []
    groups = int((variants > 1).sum())
    what = {"number": "numbers", "spans": "entities", "answers": "answers"}.get(task.target.kind, "labels")
    shared = f"{groups:,} {noun if groups == 1 else 'pairs of texts' if noun == 'pair of texts' else noun + 's'}"
    message = f"{count_rows(count, name)} share {shared} with different {what}."
    todo = f"Decide for one {_ONE.get(what, what[:-1])}, or remove these rows."
    return [
        finding(
            "conflicting-labels",
            "warning",
            message,
            todo=todo,
            split=name,
            file=rows.places.file,
            rows=rows.places.rows[clash],
        )
    ]


def _one_class(train: Rows, labels: Sequence[str], task: Task) -> tuple[list[Finding], list[Problem]]:
    where = Where(file=train.places.file, field=task.target.name)
    if not len(train):
        found, problem = _no_rows(train, "train")
        return [found], [problem]
    if isinstance(train.values, np.ndarray) and train.values.ndim == 1 and (train.values == train.values[0]).all():
        only = str(float(train.values[0]))
        message = f"All {len(train):,} rows of train have the same target, {only}."
        kind, expected, got, todo = "one-class", "different targets", f"only {only}", "Check the column."
    elif isinstance(train.values, Answers) and not train.values.answered.any():
        message = f"None of the {len(train):,} rows of train has an answer."
        kind, expected, got, todo = "one-class", "rows with an answer", "none", "Check the column of the answers."
    elif isinstance(train.values, Lists) and (train.values.numbers > 0).all():
        message = f"All candidates of the {len(train):,} lists of train are relevant: there is nothing to tell apart."
        todo = "Add rows with relevance 0, such as other texts that were found and do not answer the query."
        kind, expected, got = "one-class", "candidates that are not relevant", "none"
    elif (task.has_labels or isinstance(train.values, Labels)) and len(labels) < (
        2 if task.target.kind in ("class", "relation") else 1
    ):
        only = f"the one label {shorten(labels[0])}" if labels else "no label"
        message = f"All {len(train):,} rows of train have {only}."
        kind, expected, got = "one-class", "at least two different labels" if labels else "labels", f"only {only}"
        todo = "Check that the right column is taken for the label; there is nothing to learn from one label."
    else:
        return [], []
    found = finding(kind, "error", message, todo=todo, split="train", file=train.places.file)
    return [found], [Problem(expected, got, todo, where)]


def _answers(rows: Rows, name: str) -> list[Finding]:
    """How many rows have no answer, and how many several; nothing where targets are no answers."""
    if not isinstance(rows.values, Answers):
        return []
    counts, told = np.diff(rows.values.spans.offsets), []
    none, several = int((counts == 0).sum()), int((counts > 1).sum())
    if none:
        message = f"{count_rows(none, name)} ({share(none, len(rows))}) {agree(none, 'have')} no answer in the context."
        told.append(("no-answer", message, counts == 0))
    if several:
        use = "the first of them is learned" if name == "train" else "the most similar one counts"
        message = f"{count_rows(several, name)} {agree(several, 'have')} several right answers: {use}."
        told.append(("several-answers", message, counts > 1))
    file, numbers = rows.places.file, rows.places.rows
    return [finding(kind, "info", text, split=name, file=file, rows=numbers[which]) for kind, text, which in told]


def _references(rows: Rows, name: str, task: Task) -> list[Finding]:
    """How many rows have several targets, and how many only repeat their source; nothing for other tasks."""
    if task.target.kind != "written":
        return []
    sources = next(iter(rows.inputs.values()))
    right = [references_of(target) for target in rows.values]  # type: ignore[union-attr]  # texts, in this task
    several = np.fromiter((len(texts) > 1 for texts in right), bool)
    pairs = zip(sources, right, strict=True)
    same = np.fromiter((any(text.strip() == source.strip() for text in texts) for source, texts in pairs), bool)
    told = []
    if several.any():
        use = "the first of them is learned" if name == "train" else "the loss is of the first, all other scores of all"
        count = int(several.sum())
        told.append(("several-targets", f"{count_rows(count, name)} {agree(count, 'have')} several targets: {use}."))
    if same.any():
        count = int(same.sum())
        told.append(
            ("same-as-source", f"{count_rows(count, name)} {agree(count, 'have')} a target that is the source.")
        )
    file, numbers = rows.places.file, rows.places.rows
    which = {"several-targets": several, "same-as-source": same}
    return [finding(kind, "info", text, split=name, file=file, rows=numbers[which[kind]]) for kind, text in told]


def _no_rows(rows: Rows, name: str) -> tuple[Finding, Problem]:
    todo = "Correct the rows that were named."
    found = finding("no-rows", "error", f"No row of {name} can be used.", todo=todo, split=name, file=rows.places.file)
    return found, Problem(f"rows of {name}", "none that can be used", todo, Where(file=rows.places.file))


def _class_sizes(train: Rows, labels: Sequence[str]) -> list[Finding]:
    names = labels_of(train.values)
    if names is None:
        return []
    counts = names.count()
    findings = []
    rare = [label for label in labels if counts[label] < 2]
    file = train.places.file
    if rare:
        has_rare = np.array([not some.isdisjoint(rare) for some in map(set, names.sets)], dtype=bool)
        rows = train.places.rows[has_rare[names.codes]]
        shown = ", ".join(shorten(label) for label in rare[:10]) + (", …" if len(rare) > 10 else "")
        message = f"{count_rows(len(rare), None, 'label')} {agree(len(rare), 'have')} a single row in train: {shown}."
        todo = "Add rows, or merge the label with another: one example teaches little."
        findings.append(finding("rare-class", "warning", message, todo=todo, split="train", file=file, rows=rows))
    if len(labels) > max(10, len(train) // 2):
        message = f"{len(labels):,} different labels in {len(train):,} rows of train."
        todo = "Is this the right column, and is it classification? Numbers are a case for --task regression."
        findings.append(finding("many-classes", "warning", message, todo=todo, split="train", file=file))
    most, least = max(labels, key=lambda label: counts[label]), min(labels, key=lambda label: counts[label])
    if counts[most] >= IMBALANCE * counts[least]:
        message = (
            f"The labels of train are uneven: {shorten(most)} has {count_rows(counts[most], None)}, "
            f"{shorten(least)} has {counts[least]:,}."
        )
        todo = "Look at macro F1 and at the scores of each label, not at accuracy alone."
        findings.append(finding("imbalance", "warning", message, todo=todo, split="train", file=file))
    return findings
