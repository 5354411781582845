"""From a table to the texts and targets of a task, row by row, with the flaws of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chainrule.core.recipe import Clean
from chainrule.core.report import Finding
from chainrule.core.task import Task
from chainrule.data.chat import MESSAGES, read_conversations
from chainrule.data.clean import clean_texts, exact_duplicates
from chainrule.data.flaws import Flaw, agree, count_rows, finding, summarise
from chainrule.data.split import hash_texts
from chainrule.data.table import Table
from chainrule.data.targets import Value, read_targets, target_text
from chainrule.errors import Problem

TOOLS = "tools"
_NO_TOOLS = ("", "[]", "null")


@dataclass(frozen=True)
class Rows:
    """Usable rows of one table.

    Attributes:
        inputs: field -> (n,) texts.
        values: (n,) targets before encoding; empty when they were not asked for.
        hashes: (n,) uint64 of the inputs.
        row_hashes: (n,) uint64 of the inputs and the target; of the inputs alone without targets.
    """

    table: Table
    inputs: dict[str, list[str]]
    values: list[Value]
    hashes: np.ndarray
    row_hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at `indices`, in that order."""
        inputs = {name: [texts[index] for index in indices] for name, texts in self.inputs.items()}
        values = [self.values[index] for index in indices] if self.values else []
        return Rows(self.table.take(indices), inputs, values, self.hashes[indices], self.row_hashes[indices])


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
        fields: field -> column; targets are read if the task's target field is in it.
    """
    if task.target.kind == "reply":
        return _prepare_conversations(table, fields, split=split, clean=clean, on_bad_row=on_bad_row)
    raw = {spec.name: table.texts(fields[spec.name]) for spec in task.inputs if spec.name in fields}
    cleaned = clean_texts({name: [text or "" for text in texts] for name, texts in raw.items()}, clean, table, split)
    flaws = text_flaws(table, raw, cleaned.inputs)
    values: list[Value | None] = []
    target = task.target
    if target.name in fields:
        values, found = read_targets(table, target.name, fields[target.name], target.kind)
        flaws += found
    findings, problems = summarise(flaws, split=split, file=table.file, on_bad_row=on_bad_row)
    rows = _usable(table, cleaned.inputs, values, flaws)
    return _without_duplicates(rows, [*cleaned.findings, *findings], problems, split, clean)


def _prepare_conversations(
    table: Table, fields: Mapping[str, str], *, split: str | None, clean: Clean, on_bad_row: str
) -> Prepared:
    found = read_conversations(table, fields, clean, with_reply=True)
    findings, problems = summarise(found.flaws, split=split, file=table.file, on_bad_row=on_bad_row)
    if found.cleaned:
        changed = count_rows(len(found.cleaned), split)
        message = f"{changed} {agree(len(found.cleaned), 'were changed')} by the cleaning that was asked for."
        note = finding("cleaned", "info", message, split=split, file=table.file, rows=found.cleaned)
        findings.insert(0, note)
    cells = table.texts(TOOLS) if TOOLS in table.names else []
    tools = [int(table.rows[i]) for i, cell in enumerate(cells) if cell and cell.strip() not in _NO_TOOLS]
    if tools:
        message = f"{count_rows(len(tools), split)} {agree(len(tools), 'list')} tools that the model will not see."
        todo = "The column tools is not read yet: put what the model should know of them into the system's turn."
        findings.append(
            finding("unread-tools", "warning", message, todo=todo, split=split, file=table.file, rows=tools)
        )
    rows = _usable(table, {MESSAGES: found.contexts}, found.replies, found.flaws)
    return _without_duplicates(rows, findings, problems, split, clean)


def _without_duplicates(
    rows: Rows, findings: list[Finding], problems: list[Problem], split: str | None, clean: Clean
) -> Prepared:
    if clean.exact_duplicates:
        keep, note = exact_duplicates(rows.row_hashes, rows.table, split)
        rows = rows.take(np.flatnonzero(keep))
        findings.append(note)
    return Prepared(rows, findings, problems)


def text_flaws(
    table: Table, raw: Mapping[str, Sequence[str | None]], inputs: Mapping[str, Sequence[str]]
) -> list[Flaw]:
    """Flaws of texts: missing, empty (also after cleaning), NUL bytes, U+FFFD."""
    flaws = []
    for name, texts in inputs.items():
        for index, text in enumerate(texts):
            row = int(table.rows[index])
            if not text or text.isspace():
                got = _emptiness(raw[name][index])
                problem = Problem("a text", got, "Fill in or remove this row.", table.where(index, name))
                flaws.append(Flaw("empty-text", row, problem))
            elif "\0" in text:
                got = f"a NUL byte at character {text.index(chr(0)) + 1}"
                todo = "Remove the NUL bytes; the file may be damaged."
                flaws.append(Flaw("nul-byte", row, Problem("text", got, todo, table.where(index, name))))
            elif "\ufffd" in text:
                flaws.append(Flaw("replacement-character", row))
    return flaws


def _emptiness(text: str | None) -> str:
    if text is None:
        return "a missing value"
    if not text:
        return "an empty cell"
    return "only white space" if text.isspace() else "nothing that is left after cleaning"


def _usable(table: Table, inputs: dict[str, list[str]], values: Sequence[Value | None], flaws: Sequence[Flaw]) -> Rows:
    bad = {flaw.row for flaw in flaws if flaw.problem is not None}
    keep = np.array([index for index, row in enumerate(table.rows.tolist()) if row not in bad], dtype=np.int64)
    if bad:
        table = table.take(keep)
        inputs = {name: [texts[index] for index in keep] for name, texts in inputs.items()}
        values = [values[index] for index in keep] if values else []
    whole = [value for value in values if value is not None]
    texts = list(inputs.values())
    hashes = hash_texts(texts)
    row_hashes = hash_texts([*texts, [target_text(value) for value in whole]]) if values else hashes
    return Rows(table, inputs, whole, hashes, row_hashes)
