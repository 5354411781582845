"""Rows of files as lists of candidates, in the one place that knows which of the two forms they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chainrule.core.recipe import Clean, Data, Section
from chainrule.core.task import Task
from chainrule.data.events import BESIDE, read_catalogue, read_events
from chainrule.data.fields import find_fields
from chainrule.data.interactions import group_interactions, positive_of
from chainrule.data.lists import QUERY, Grouped
from chainrule.data.profiles import Profiles, Sampling
from chainrule.data.queries import group_queries
from chainrule.data.read import Reading, read
from chainrule.data.split import TRAIN
from chainrule.data.table import Table
from chainrule.errors import DataError, Problem, Where


def beside(task: Task) -> tuple[str, ...]:
    """The names of the files that a task reads beside those of the splits."""
    return BESIDE if task.target.kind == "relevances" else ()


def in_lists(
    tables: Mapping[str, Table], reading: Reading, fields: Mapping[str, str], spec: Data, options: Section | None
) -> Grouped:
    """The rows of all splits as lists of candidates."""
    if QUERY in fields:
        return group_queries(tables, fields, spec.clean, spec.on_bad_row)
    others = {name: reading.tables[name] for name in BESIDE if name in reading.tables}
    sampling = options if isinstance(options, Sampling) else Sampling()
    return group_interactions(tables, others, fields, spec, sampling)


def grouped(
    reading: Reading, wanted: str, spec: Data, task: Task, recorded: Mapping[str, str], options: Section | None
) -> Reading:
    """A reading whose rows are lists of candidates; of what was noticed that which is about the wanted split."""
    tables = {name: table for name, table in reading.tables.items() if name not in BESIDE}
    first = next(iter(tables.values()))
    fields = find_fields(first.names, task, named=spec.fields, recorded=recorded, file=first.file)
    if QUERY in fields and wanted in tables:
        tables = {wanted: tables[wanted]}
    lists = in_lists(tables, reading, fields, spec, options)
    told = [found for found in lists.findings if found.split in (wanted, None) or found.severity == "error"]
    problems = (*reading.problems, *lists.problems)
    return Reading(lists.tables, problems, (*reading.findings, *told), reading.fingerprint)


def read_profiles(folder: Path, fields: Mapping[str, str], options: Sampling, clean: Clean) -> Profiles:
    """What a folder's files tell of users: what they liked in train, and rated in any split that has the same columns.

    Args:
        fields, clean: field -> column, and the changes to texts, as when the model was trained.

    Raises:
        DataError: there is no train split, or no table of items.
    """
    reading = read(folder, beside=BESIDE)
    tables = {name: table for name, table in reading.tables.items() if set(fields.values()) <= set(table.names)}
    if TRAIN not in tables:
        expected = f"a train file with the columns {', '.join(fields.values())}"
        todo = "Put the train file, and that of items, beside the rows."
        raise DataError("What users liked is not known.", [Problem(expected, "none", todo, Where(str(folder)))])
    others = {name: reading.tables[name] for name in BESIDE if name in reading.tables}
    tables = {name: table for name, table in tables.items() if name not in BESIDE}
    catalogue, _, _ = read_catalogue(others, tables[TRAIN].file, clean)
    positive = positive_of(tables, fields, options)
    events = {name: read_events(table, fields, catalogue, positive)[0] for name, table in tables.items()}
    return Profiles.of(events, catalogue, options.history)
