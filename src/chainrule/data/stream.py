"""Rows without labels, for predicting: in pieces, so that a file of any size fits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chainrule.core.recipe import Clean
from chainrule.core.report import Finding
from chainrule.core.task import Task
from chainrule.data.chat import MESSAGES, read_conversations
from chainrule.data.clean import clean_texts
from chainrule.data.entities import TOKENS, read_marked
from chainrule.data.fields import find_fields
from chainrule.data.flaws import MAX_PROBLEMS, Flaw, summarise
from chainrule.data.images import image_rows, is_image, read_images
from chainrule.data.read import chunks, located, read
from chainrule.data.rows import text_flaws, usable
from chainrule.data.table import Table
from chainrule.data.texts import Texts
from chainrule.errors import DataError, Problem, Where


@dataclass(frozen=True)
class Inputs:
    """Rows to predict, read again from the file at each iteration.

    Iterating yields (table, inputs): a table of up to `chunk_rows` rows with the file's own columns, and
    field -> texts. Every row of every table can be used; rows set aside are in `findings`.

    Attributes:
        rows: how many rows there are in all.
        columns: the names of all columns, in order.
        fields: input field -> column.
    """

    source: Any
    rows: int
    columns: tuple[str, ...]
    fields: dict[str, str]
    findings: tuple[Finding, ...]
    chunk_rows: int
    clean: Clean
    task: Task

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[Table, dict[str, Texts]]]:
        for piece, _ in _pieces(self.source, self.chunk_rows):
            table = _with_columns(piece, self.columns)
            inputs, flaws = _texts(table, self.fields, self.clean, self.task)
            keep = usable(table.places, flaws)
            if keep is not None:
                table, inputs = table.take(keep), {name: texts[keep] for name, texts in inputs.items()}
            if len(table):
                yield table, inputs


def stream(path: str | os.PathLike[str], chunk_rows: int = 1_024) -> Iterator[Table]:
    """Yield a file's rows as tables of up to `chunk_rows` rows.

    Raises:
        DataError: the file cannot be read, or rows of it cannot; every one of the piece at hand is named.
    """
    for table, flaws in chunks(located(path), os.fspath(path), chunk_rows):
        problems = [flaw.problem for flaw in flaws if flaw.problem is not None]
        if problems:
            raise DataError(f"{os.fspath(path)} has rows that cannot be read.", problems[:MAX_PROBLEMS])
        if len(table):
            yield table


def load_inputs(
    source: Any,
    task: Task,
    fields: Mapping[str, str] | None = None,
    chunk_rows: int = 1_024,
    *,
    named: Mapping[str, str] | None = None,
    on_bad_row: str = "stop",
    clean: Clean | None = None,
) -> Inputs:
    """Rows to predict. The whole source is checked once before anything is handed out.

    Args:
        source: a CSV, TSV, JSONL, JSON or Parquet file, a DataFrame or a Dataset.
        fields: field -> column as recorded when the model was trained.
        named: field -> column as the user asked now.
        clean: the changes to texts that were made for training.

    Raises:
        DataError: the source cannot be read, has no rows, lacks a column, or (with `on_bad_row` "stop") has rows
            that cannot be predicted, such as empty texts; all of them are named.
    """
    read_before: list[Finding] = []
    wrong_before: list[Problem] = []
    if not isinstance(source, str | os.PathLike):
        source = read(source, on_bad_row=on_bad_row)
        read_before, wrong_before = list(source.findings), list(source.problems)
    clean = clean or Clean()
    columns: dict[str, None] = {}
    flaws: list[Flaw] = []
    mapping: dict[str, str] | None = None
    rows = 0
    file = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    for table, found in _pieces(source, max(chunk_rows, 8_192)):
        file = table.file
        columns |= dict.fromkeys(table.names)
        if mapping is None and table.names:
            mapping = find_fields(table.names, task, named=named or {}, recorded=fields, with_target=False, file=file)
        flaws += found
        if mapping is not None:
            more = _texts(_with_columns(table, tuple(columns)), mapping, clean, task)[1]
            flaws += more
            rows += len(table) - len({flaw.row for flaw in more if flaw.problem is not None})
    findings, problems = summarise(flaws, split=None, file=file, on_bad_row=on_bad_row)
    findings, problems = [*read_before, *findings], [*wrong_before, *problems]
    if not rows and not problems:
        problems = [Problem("at least one row to predict", "none", "Check the file.", Where(file=file))]
    if problems:
        message = " ".join(found.message for found in findings if found.severity == "error")
        raise DataError(f"The data cannot be predicted: {message or 'it has no rows.'}", problems[:MAX_PROBLEMS])
    return Inputs(source, rows, tuple(columns), mapping or {}, tuple(findings), chunk_rows, clean, task)


def _pieces(source: Any, chunk_rows: int) -> Iterator[tuple[Table, list[Flaw]]]:
    if isinstance(source, str | os.PathLike):
        path = located(source)
        if is_image(path) or path.is_dir():
            yield image_rows(path, os.fspath(source)), []
        else:
            yield from chunks(path, os.fspath(source), chunk_rows)
        return
    for table in source.tables.values():
        for start in range(0, len(table), chunk_rows):
            yield table.take(np.arange(start, min(start + chunk_rows, len(table)))), []


def _texts(table: Table, fields: Mapping[str, str], clean: Clean, task: Task) -> tuple[dict[str, Texts], list[Flaw]]:
    if task.converses:
        found = read_conversations(table, fields, clean, with_reply=False)
        return {MESSAGES: found.contexts}, found.flaws
    if task.target.kind == "spans":
        marked = read_marked(table, fields, None)
        return {TOKENS: marked.inputs}, marked.flaws
    if task.sees:
        (field,) = fields
        images = read_images(table, field, fields[field], None)
        return {field: images.inputs}, images.flaws
    raw = {name: table.texts(column) for name, column in fields.items()}
    inputs = clean_texts(raw, clean, table.places, None).inputs
    return inputs, text_flaws(table.places, raw, inputs)


def _with_columns(table: Table, names: tuple[str, ...]) -> Table:
    """The table with all of `names`; a key that no object of a piece has is missing in all of them."""
    if tuple(table.names) == names:
        return table
    empty = pa.nulls(len(table), pa.string())
    arrays = [table.columns.column(name) if name in table.names else empty for name in names]
    return Table(table.file, pa.table(arrays, names=list(names)), table.rows, table.lines)
