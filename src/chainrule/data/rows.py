"""From a table to the texts and targets of a task, row by row, with the flaws of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chainrule.core.recipe import Clean
from chainrule.core.report import Finding
from chainrule.core.task import Task
from chainrule.data.answers import read_answers
from chainrule.data.chat import MESSAGES, Conversations, read_conversations
from chainrule.data.clean import clean_texts, exact_duplicates
from chainrule.data.entities import TOKENS, read_marked
from chainrule.data.flaws import Flaw, agree, count_rows, finding, summarise
from chainrule.data.images import read_images
from chainrule.data.lists import read_lists
from chainrule.data.preferences import read_preferences
from chainrule.data.relations import read_relations
from chainrule.data.split import hash_texts
from chainrule.data.table import Places, Table
from chainrule.data.targets import Values, read_targets, target_texts
from chainrule.data.texts import Texts
from chainrule.data.written import read_references
from chainrule.errors import DataError, Problem, Where


@dataclass(frozen=True)
class Rows:
    """Usable rows of one table.

    Attributes:
        inputs: field -> (n,) texts.
        values: (n,) targets before encoding.
        hashes: (n,) uint64 of the inputs.
        row_hashes: (n,) uint64 of the inputs and the target.
    """

    places: Places
    inputs: dict[str, Texts]
    values: Values
    hashes: np.ndarray
    row_hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at `indices`, in that order."""
        inputs = {name: texts[indices] for name, texts in self.inputs.items()}
        hashes, row_hashes = self.hashes[indices], self.row_hashes[indices]
        return Rows(self.places[indices], inputs, self.values[indices], hashes, row_hashes)


@dataclass(frozen=True)
class Prepared:
    """Usable rows, and what was noticed about all of them."""

    rows: Rows
    findings: list[Finding]
    problems: list[Problem]


def prepare(
    table: Table,
    fields: Mapping[str, str],
    task: Task,
    *,
    split: str | None,
    clean: Clean,
    on_bad_row: str,
) -> Prepared:
    """Take the task's fields from a table, clean the texts if asked, and set unusable rows aside.

    Args:
        fields: field -> column, of inputs and target.
    """
    if task.converses:
        if task.target.kind == "preference":
            found = read_preferences(table, fields, clean)
        else:
            found = read_conversations(table, fields, clean, with_reply=True)
        return _prepare_conversations(table, found, split=split, clean=clean, on_bad_row=on_bad_row)
    if task.target.kind == "relevances":
        return Prepared(_lists(table), [], [])
    if task.target.kind in ("spans", "answers"):
        _refuse_cleaning(clean)
    if task.target.kind == "spans":
        marked = read_marked(table, fields, task.target.name)
        findings, problems = summarise(marked.flaws, split=split, file=table.file, on_bad_row=on_bad_row)
        rows = _usable(table.places, {TOKENS: marked.inputs}, marked.values, marked.flaws)
        return _without_duplicates(rows, findings, problems, split, clean)
    if task.sees:
        return _prepare_images(table, fields, task, split=split, clean=clean, on_bad_row=on_bad_row)
    raw = {spec.name: table.texts(fields[spec.name]) for spec in task.inputs if spec.name in fields}
    cleaned = clean_texts(raw, clean, table.places, split)
    target = task.target
    values: Values
    if target.kind == "answers":
        values, wrong = read_answers(table, target.name, fields[target.name], raw["context"])
    elif target.kind == "written":
        values, wrong = read_references(table, target.name, fields[target.name], clean)
    elif target.kind == "relation":
        values, wrong = read_relations(table, fields, cleaned.inputs)
    else:
        values, wrong = read_targets(table, target.name, fields[target.name], target.kind)
    flaws = [*text_flaws(table.places, raw, cleaned.inputs), *wrong]
    findings, problems = summarise(flaws, split=split, file=table.file, on_bad_row=on_bad_row)
    rows = _usable(table.places, cleaned.inputs, values, flaws)
    return _without_duplicates(rows, [*cleaned.findings, *findings], problems, split, clean)


def _lists(table: Table) -> Rows:
    inputs, values, keys = read_lists(table)
    return Rows(table.places, inputs, values, hash_texts([keys]), hash_texts([keys, target_texts(values)]))


def _prepare_conversations(
    table: Table, found: Conversations, *, split: str | None, clean: Clean, on_bad_row: str
) -> Prepared:
    findings, problems = summarise(found.flaws, split=split, file=table.file, on_bad_row=on_bad_row)
    if found.cleaned:
        changed = count_rows(len(found.cleaned), split)
        message = f"{changed} {agree(len(found.cleaned), 'were changed')} by the cleaning that was asked for."
        note = finding("cleaned", "info", message, split=split, file=table.file, rows=found.cleaned)
        findings.insert(0, note)
    rows = _usable(table.places, {MESSAGES: found.contexts}, found.replies, found.flaws)
    return _without_duplicates(rows, findings, problems, split, clean)


def _prepare_images(
    table: Table, fields: Mapping[str, str], task: Task, *, split: str | None, clean: Clean, on_bad_row: str
) -> Prepared:
    _refuse_cleaning(clean, "images", "a cleaning of texts", "Images cannot be cleaned.")
    (image,), target = task.inputs, task.target
    found = read_images(table, image.name, fields[image.name], split)
    values, wrong = read_targets(table, target.name, fields[target.name], target.kind)
    flaws = [*found.flaws, *wrong]
    findings, problems = summarise(flaws, split=split, file=table.file, on_bad_row=on_bad_row)
    rows = _usable(table.places, {image.name: found.inputs}, values, flaws, hashed=found.digests)
    return _without_duplicates(rows, [*findings, *found.findings], problems, split, clean)


def _refuse_cleaning(
    clean: Clean,
    expected: str = "texts as they were marked",
    got: str = "a cleaning that moves characters",
    message: str = "Texts with marked pieces cannot be cleaned.",
) -> None:
    """Raise DataError where a cleaning of texts is asked for that these rows cannot have."""
    asked = [name for name in ("html", "unicode_nfkc", "white_space") if getattr(clean, name)]
    if asked:
        where, todo = Where(field=f"data.clean.{asked[0]}"), "Leave it out, or clean the data before."
        raise DataError(message, [Problem(expected, got, todo, where)])


def _without_duplicates(
    rows: Rows, findings: list[Finding], problems: list[Problem], split: str | None, clean: Clean
) -> Prepared:
    if clean.exact_duplicates:
        keep, note = exact_duplicates(rows.row_hashes, rows.places, split)
        rows = rows.take(np.flatnonzero(keep))
        findings.append(note)
    return Prepared(rows, findings, problems)


def text_flaws(places: Places, raw: Mapping[str, Texts], inputs: Mapping[str, Texts]) -> list[Flaw]:
    """Flaws of texts: missing, empty (also after cleaning), NUL bytes, U+FFFD."""
    flaws = []
    for name, texts in inputs.items():
        for index, text in enumerate(texts):
            if not text or text.isspace():
                got = _emptiness(raw[name][index])
                problem = Problem("a text", got, "Fill in or remove this row.", places.where(index, name))
                flaws.append(Flaw("empty-text", int(places.rows[index]), problem))
            elif "\0" in text:
                got = f"a NUL byte at character {text.index(chr(0)) + 1}"
                todo = "Remove the NUL bytes; the file may be damaged."
                problem = Problem("text", got, todo, places.where(index, name))
                flaws.append(Flaw("nul-byte", int(places.rows[index]), problem))
            elif "\ufffd" in text:
                flaws.append(Flaw("replacement-character", int(places.rows[index])))
    return flaws


def usable(places: Places, flaws: Sequence[Flaw]) -> np.ndarray | None:
    """Positions of the rows that can be used; None for all of them."""
    bad = [flaw.row for flaw in flaws if flaw.problem is not None]
    return np.flatnonzero(np.isin(places.rows, bad, invert=True)) if bad else None


def _emptiness(text: str | None) -> str:
    if text is None:
        return "a missing value"
    if not text:
        return "an empty cell"
    return "only white space" if text.isspace() else "nothing that is left after cleaning"


def _usable(
    places: Places,
    inputs: dict[str, Texts],
    values: Values,
    flaws: Sequence[Flaw],
    hashed: Texts | None = None,
) -> Rows:
    """The rows without a flaw; `hashed` stands for the inputs where those only name what is read."""
    keep = usable(places, flaws)
    if keep is not None:
        places, values = places[keep], values[keep]
        inputs = {name: texts[keep] for name, texts in inputs.items()}
        hashed = None if hashed is None else hashed[keep]
    texts = list(inputs.values()) if hashed is None else [hashed]
    return Rows(places, inputs, values, hash_texts(texts), hash_texts([*texts, target_texts(values)]))
