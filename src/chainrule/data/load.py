"""The front door: from a source to splits with texts, targets and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from chainrule.core.recipe import Data, Section
from chainrule.core.report import CheckReport, Finding
from chainrule.core.spans import together
from chainrule.core.task import Task
from chainrule.data.check import check_splits, noun_of, share, summary
from chainrule.data.cut import made_of
from chainrule.data.events import BESIDE
from chainrule.data.fields import check_columns, find_fields
from chainrule.data.flaws import MAX_PROBLEMS, agree, count_rows, finding, summarise
from chainrule.data.grouping import beside, grouped, in_lists
from chainrule.data.lists import USER
from chainrule.data.read import SPLITS, Reading, read
from chainrule.data.rows import Rows, prepare
from chainrule.data.split import TRAIN, Cut
from chainrule.data.table import Places, Table
from chainrule.data.targets import encode_targets, label_names, labels_of, unknown_labels
from chainrule.data.texts import Texts
from chainrule.data.times import Clock, clock_of, time_leaks
from chainrule.errors import DataError, NoSplitError, Problem, Where


@dataclass(frozen=True)
class Split:
    """Usable rows of one split.

    Attributes:
        places: where they stand in the file.
        inputs: field -> (n,) texts.
        targets: int64 (n,) of label indexes, float32 (n, labels) of 0 and 1, float64 (n,), `Spans`,
            `Answers` or `Lists` of n rows, or `Texts` (n,) of replies.
        hashes: (n,) uint64 of the inputs.
    """

    places: Places
    inputs: dict[str, Texts]
    targets: Any
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: np.ndarray) -> Split:
        """The rows at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        inputs = {name: texts[chosen] for name, texts in self.inputs.items()}
        return Split(self.places[chosen], inputs, self.targets[chosen], self.hashes[chosen])

    @classmethod
    def joined(cls, splits: Sequence[Split]) -> Split:
        """The rows of all splits, one after the other. Rows of several files have no file and no lines."""
        files = {split.places.file for split in splits}
        lines = [split.places.lines for split in splits if split.places.lines is not None]
        known = len(files) == 1 and len(lines) == len(splits)
        rows = np.concatenate([split.places.rows for split in splits])
        places = Places(files.pop() if len(files) == 1 else None, rows, np.concatenate(lines) if known else None)
        inputs = {name: Texts.of(chain.from_iterable(s.inputs[name] for s in splits)) for name in splits[0].inputs}
        targets, hashes = ([getattr(split, name) for split in splits] for name in ("targets", "hashes"))
        return cls(places, inputs, together(targets), np.concatenate(hashes))


@dataclass(frozen=True)
class Dataset:
    """Splits ready for a task, with everything that was noticed about them.

    Attributes:
        splits: "train", "validation" and perhaps "test".
        labels: sorted label names found in train; for a number the name of its field; for a reply none.
        fields: the task's field -> column.
        cut: how the splits were made, where they were not given.
        fingerprint: split (or "all") -> SHA-256 of its file.
    """

    splits: dict[str, Split]
    labels: tuple[str, ...]
    fields: dict[str, str]
    report: CheckReport
    cut: Cut | None
    fingerprint: dict[str, str]

    def require_ok(self) -> None:
        """Raise DataError with every problem if the report has errors."""
        if self.report.ok:
            return
        raise _unusable(self.report.findings, self.report.problems)


@dataclass(frozen=True)
class Labelled:
    """Rows to evaluate on.

    Attributes:
        name: the split they are, or "all" for a whole new file.
    """

    split: Split
    name: str
    findings: tuple[Finding, ...]
    fingerprint: dict[str, str]


def load(
    source: Any, spec: Data, task: Task, *, options: Section | None = None, recorded: Cut | None = None
) -> Dataset:
    """Read, find the fields, clean, cut and check.

    Rows that cannot be used do not raise: they are in the report, and `Dataset.require_ok` raises.

    Args:
        options: of the task; None for its defaults.
        recorded: a cut made before, used again where these are the same rows.

    Raises:
        DataError: nothing can be read, there is no train split, or a column cannot be found.
    """
    reading = read(source, on_bad_row=spec.on_bad_row, beside=beside(task))
    tables, notes = _known_splits(reading)
    first = next(iter(tables.values()))
    if reading.problems and not first.names:  # not one object could be read, so that there are no columns
        raise _unusable(reading.findings, reading.problems)
    fields = find_fields(first.names, task, named=spec.fields, file=first.file)
    tables, unlabelled = _same_columns(tables, fields, task, spec.time_column)
    clocks = _clocks(tables, fields, spec)
    findings, problems = [*reading.findings, *notes, *unlabelled], list(reading.problems)
    if task.target.kind == "relevances":
        lists = in_lists(tables, reading, fields, spec, options)
        tables, findings, problems = lists.tables, [*findings, *lists.findings], [*problems, *lists.problems]
    rows: dict[str, Rows] = {}
    for name, table in tables.items():
        split = None if name == "all" else name
        done = prepare(table, fields, task, split=split, clean=spec.clean, on_bad_row=spec.on_bad_row)
        rows[name] = done.rows
        findings += done.findings
        problems += done.problems
    made = made_of(rows, clocks, spec, reading.fingerprint, recorded)
    splits, findings, problems = made.splits, [*findings, *made.findings], [*problems, *made.problems]
    labels = _labels(splits[TRAIN], task)
    for name in splits:
        splits[name], told, wrong = _drop_unknown(splits[name], labels, task, name, spec.on_bad_row)
        findings += told
        problems += wrong
    told, wrong = check_splits(splits, labels, task)
    report = CheckReport(
        task=task.name,
        source=_describe(source),
        fields=fields,
        splits={name: summary(part, labels, task) for name, part in splits.items()},
        labels=labels,
        findings=tuple(_by_severity([*findings, *told])),
        problems=tuple([*problems, *wrong][:MAX_PROBLEMS]),
        cut=made.told,
    )
    done_splits = {name: _finish(part, labels, task) for name, part in splits.items()}
    return Dataset(done_splits, labels, fields, report, made.cut, reading.fingerprint)


def load_labelled(  # noqa: PLR0913  (what an artifact knows about its training, by name)
    source: Any,
    split: str | None,
    spec: Data,
    task: Task,
    *,
    fields: Mapping[str, str],
    labels: Sequence[str],
    recorded_cut: Cut | None,
    known_hashes: Mapping[str, np.ndarray],
    options: Section | None = None,
) -> Labelled:
    """Rows with targets for evaluating an artifact.

    The same single file as at training gives the split of the recorded cut; a new single file gives all its rows; a
    folder gives the named split. Rows whose inputs the model has seen are reported.

    Args:
        split: the split asked for; None means "test" where there is one.
        spec: `fields` holds what the user named now; a column recorded at training need not be named again.
        fields: field -> column as recorded at training.
        labels: label names of the artifact, in its order.
        known_hashes: split name -> input hashes of the rows used in training.
        options: of the task; None for its defaults.

    Raises:
        DataError: nothing can be read, there is no such split, or rows cannot be used (with `on_bad_row` "stop").
    """
    reading = read(source, on_bad_row=spec.on_bad_row, beside=beside(task))
    findings, problems = list(reading.findings), list(reading.problems)
    wanted = split or "test"
    if task.target.kind == "relevances":
        reading = grouped(reading, wanted, spec, task, fields, options)
        findings, problems = list(reading.findings), list(reading.problems)
    name = wanted if wanted in reading.tables else "all" if "all" in reading.tables else TRAIN
    if name not in reading.tables or (
        name == TRAIN != wanted and (recorded_cut is None or wanted not in recorded_cut.hashes)
    ):
        raise _no_split(wanted, reading)
    table = reading.tables[name]
    named = {} if task.target.kind == "relevances" else spec.fields
    mapping = find_fields(table.names, task, named=named, recorded=fields, file=table.file)
    shown = None if name == "all" else name
    done = prepare(table, mapping, task, split=shown, clean=spec.clean, on_bad_row=spec.on_bad_row)
    findings += done.findings
    problems += done.problems
    rows, name, told = _recorded_part(done.rows, name, split, recorded_cut, reading)
    findings += told
    rows, told, wrong = _drop_unknown(rows, labels, task, name, spec.on_bad_row)
    findings += told
    problems += wrong
    if not len(rows) and not problems:
        problems.append(Problem("rows to evaluate on", "none", "Check the data.", Where(file=table.file)))
    if problems:
        raise _unusable(findings, problems)
    findings += _seen_before(rows, name, known_hashes)
    return Labelled(_finish(rows, labels, task), name, tuple(_by_severity(findings)), reading.fingerprint)


def _recorded_part(
    rows: Rows, name: str, asked: str | None, cut: Cut | None, reading: Reading
) -> tuple[Rows, str, list[Finding]]:
    """The rows of the recorded cut, or all of them."""
    wanted = asked or "test"
    if name == wanted and (name != TRAIN or cut is None or "all" in reading.tables):
        return rows, name, []
    if cut is not None and cut.matches(reading.fingerprint.get(name), rows.row_hashes):
        if wanted not in cut.hashes:
            raise _no_split(wanted, reading, tuple(cut.hashes))
        return rows.take(cut.apply(rows.row_hashes)[wanted]), wanted, []
    if name == TRAIN == wanted:
        return rows, name, []
    if name != "all" or asked is not None:
        raise _no_split(wanted, reading)
    message = (
        f"A file without splits that is not the one the model was trained on: all its {len(rows):,} rows are used."
    )
    return rows, name, [finding("whole-file", "info", message, file=rows.places.file)]


def _seen_before(rows: Rows, name: str, known_hashes: Mapping[str, np.ndarray]) -> list[Finding]:
    findings = []
    for used, hashes in known_hashes.items():
        seen = np.isin(rows.hashes, hashes)
        count = int(seen.sum())
        if not count or used in (name, "test"):  # nothing was learned from the test rows
            continue
        doing = "was trained on" if used == TRAIN else f"was chosen by ({used})"
        noun = noun_of(rows)
        rows_of = f"{count_rows(count, None)} of {len(rows):,} ({share(count, len(rows))})"
        message = f"{rows_of} {agree(count, 'have')} the same {noun} as rows the model {doing}."
        todo = "The score is too good by what it remembers: evaluate on rows it has not seen."
        findings.append(
            finding(
                "shared-between-splits",
                "warning",
                message,
                todo=todo,
                split=name,
                file=rows.places.file,
                rows=rows.places.rows[seen],
            )
        )
    return findings


def _known_splits(reading: Reading) -> tuple[dict[str, Table], list[Finding]]:
    if "all" in reading.tables:
        return {"all": reading.tables["all"]}, []
    if TRAIN not in reading.tables:
        file = next(iter(reading.tables.values())).file
        got = f"only {', '.join(reading.tables)}"
        problem = Problem("a train split", got, "Add a train file, or give a single file to be cut.", Where(file))
        raise DataError("There is nothing to train on.", [problem])
    tables = {name: reading.tables[name] for name in SPLITS if name in reading.tables}
    others = [name for name in reading.tables if name not in (*SPLITS, *BESIDE)]
    if not others:
        return tables, []
    return tables, [finding("ignored-split", "info", f"Splits that are not used: {', '.join(others)}.")]


def _same_columns(
    tables: dict[str, Table], fields: Mapping[str, str], task: Task, times: str | None
) -> tuple[dict[str, Table], list[Finding]]:
    """Refuse splits with other columns; a test split without labels is only set aside.

    Args:
        times: the column of times that the user named.
    """
    problems = []
    kept = dict(tables)
    notes = [] if task.target.kind == "relevances" else time_leaks(tables, fields.values(), times)
    target = task.target.name
    for name, table in tables.items():
        missing = check_columns(table.names, fields, table.file)
        unlabelled = [problem for problem in missing if problem.where.field == target]
        if name == "test" and (
            (missing and missing == unlabelled)
            or (not missing and target in fields and len(table) and not any(table.texts(fields[target])))
        ):
            message = "test has no labels: it is not used, and nothing can be measured on it."
            notes.append(finding("unlabelled-split", "warning", message, split=name, file=table.file))
            del kept[name]
        else:
            problems += missing
    if problems:
        raise DataError("The columns of the splits differ.", problems)
    return kept, notes


def _clocks(tables: Mapping[str, Table], fields: Mapping[str, str], spec: Data) -> dict[str, Clock]:
    """When the rows of the splits are from, where that may decide how they are cut."""
    if spec.cut_by == "hash" or USER in fields:  # what users did has its times as a field
        return {}
    found = {name: clock_of(table, fields.values(), spec.time_column) for name, table in tables.items()}
    return {name: clock for name, clock in found.items() if clock is not None}


def _labels(train: Rows, task: Task) -> tuple[str, ...]:
    labels = labels_of(train.values)
    if labels is not None:
        return label_names(labels)
    return (task.target.name,) if task.target.kind == "number" else ()


def _drop_unknown(
    rows: Rows, labels: Sequence[str], task: Task, name: str, on_bad_row: str
) -> tuple[Rows, list[Finding], list[Problem]]:
    names = labels_of(rows.values)
    if names is None or task.target.kind == "relation":  # texts of labels that nobody has seen can be near, too
        return rows, [], []
    good, flaws = unknown_labels(names, labels, rows.places, task.target.name)
    if not flaws:
        return rows, [], []
    split = None if name == "all" else name
    findings, problems = summarise(flaws, split=split, file=rows.places.file, on_bad_row=on_bad_row)
    return rows.take(np.flatnonzero(good)), findings, problems


def _finish(rows: Rows, labels: Sequence[str], task: Task) -> Split:
    targets = encode_targets(rows.values, task.target.kind, labels)
    return Split(rows.places, rows.inputs, targets, rows.hashes)


def _by_severity(findings: Sequence[Finding]) -> list[Finding]:
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda found: order[found.severity])


def _describe(source: Any) -> str:
    if isinstance(source, Mapping):
        return ", ".join(f"{name}: {_describe(value)}" for name, value in source.items())
    return str(source) if isinstance(source, str) or hasattr(source, "__fspath__") else type(source).__name__


def _unusable(findings: Sequence[Finding], problems: Sequence[Problem]) -> DataError:
    errors = [found.message for found in findings if found.severity == "error"]
    return DataError(" ".join(["The data cannot be used:", *errors]), problems[:MAX_PROBLEMS])


def _no_split(wanted: str, reading: Reading, names: Sequence[str] = ()) -> NoSplitError:
    there = [name for name in (names or reading.tables) if name != "all"]
    got = f"only {', '.join(there)}" if there else "a single file that is not the one the model was trained on"
    file = next(iter(reading.tables.values())).file
    todo = "Choose another --split." if there else "Leave --split out to use all rows."
    problem = Problem(f"a split named {wanted}", got, todo, Where(file))
    return NoSplitError(f"The data has no split {wanted!r}.", [problem])
