"""Any source of rows, as tables: files, folders, frames, datasets, names on the hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from chainrule.core.report import Finding
from chainrule.data import columns as columnar
from chainrule.data.catalog import dataset_file
from chainrule.data.conll import read_conll
from chainrule.data.delimited import read_delimited
from chainrule.data.flaws import Flaw, finding, refuse_names, some, summarise
from chainrule.data.hub import looks_like_hub_name, read_hub, read_saved
from chainrule.data.images import image_splits
from chainrule.data.jsontext import read_json, read_json_lines
from chainrule.data.table import Table, concatenate
from chainrule.errors import DataError, Problem, Where
from chainrule.system.files import sha256

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".conll")
SPLITS = ("train", "validation", "test")
_SAME_ENDING = {
    ".tab": ".tsv",
    ".ndjson": ".jsonl",
    ".pq": ".parquet",
    **dict.fromkeys((".bio", ".iob", ".iob2", ".bioes"), ".conll"),
}
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHARD = re.compile(r"-\d+-of-\d+$")
_CHUNK = 1 << 13  # rows that are Python objects at once while a file is read


@dataclass(frozen=True)
class Reading:
    """What was read: usable rows by split, and everything that was noticed.

    Attributes:
        tables: split name -> rows. A single file or frame is the one key "all".
        problems: one for each row that cannot be used (none with on_bad_row "skip").
        findings: the same and more by kind.
        fingerprint: split name -> SHA-256 of the file (of the Arrow data, where there is no file).
    """

    tables: dict[str, Table]
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]
    fingerprint: dict[str, str]


def read(source: Any, *, on_bad_row: str = "stop", beside: Sequence[str] = ()) -> Reading:
    """Read a file, a folder with split files, a frame, a dataset, a dict of those, or a catalog or hub name.

    Rows that cannot be read are left out of the tables and reported: as errors with `on_bad_row` "stop", as
    "skipped" warnings with "skip".

    Args:
        beside: names of files that are no splits, which are read as tables where they lie beside those that are.

    Raises:
        DataError: nothing can be read at all (no such file, no rows, no header, not UTF-8, …).
    """
    if isinstance(source, Mapping):
        return _merge(_named(source), on_bad_row)
    if columnar.is_frame(source):
        table, flaws = columnar.read_frame(source)
        return _reading({"all": (table, flaws, frame_hash(table))}, on_bad_row)
    if not isinstance(source, str | os.PathLike):
        problem = Problem(
            expected="a path, a DataFrame, a Dataset, or a dict of those by split",
            got=type(source).__name__,
            todo="Hand over one of these.",
        )
        raise DataError("The data is of a kind that cannot be read.", [problem])
    shown, path = os.fspath(source), located(source)
    if _is_folder(path, shown):
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return read(read_saved(path), on_bad_row=on_bad_row)
        has_data = any(_file_ending(each) in ENDINGS for each in path.iterdir())
        if not has_data and (images := image_splits(path, shown, _SPLIT_NAMES)):
            return _reading(images, on_bad_row)
        files, others = split_files(path, shown, beside)
        result = _merge(files, on_bad_row)
        return Reading(result.tables, result.problems, (*result.findings, *others), result.fingerprint)
    if not path.exists() and not _file_ending(path) and looks_like_hub_name(shown):
        return _merge(_named(read_hub(shown)), on_bad_row)
    return _reading({"all": _read_file(path, shown), **_neighbours(path, beside)}, on_bad_row)


def located(source: str | os.PathLike[str]) -> Path:
    """Where a source lies: the cached file of a catalog name, unless a file or folder of that name is here."""
    path = Path(source)
    return path if os.path.lexists(path) else dataset_file(os.fspath(source)) or path


def chunks(path: Path, shown: str, chunk_rows: int) -> Iterator[tuple[Table, list[Flaw]]]:
    """Read one file piece by piece: tables of up to `chunk_rows` usable rows, each with the flaws met on the way.

    JSON arrays are parsed whole; the other formats take memory for one piece only.

    Raises:
        DataError: the file is missing, unreadable, empty, or of an unknown kind.
    """
    ending = _readable(path, shown)
    try:
        if ending == ".csv":
            yield from read_delimited(path, shown, ",", chunk_rows)
        elif ending == ".tsv":
            yield from read_delimited(path, shown, "\t", chunk_rows)
        elif ending == ".jsonl":
            yield from read_json_lines(path, shown, chunk_rows)
        elif ending == ".conll":
            yield from read_conll(path, shown, chunk_rows)
        elif ending == ".json":
            yield from read_json(path, shown, chunk_rows)
        else:
            yield from columnar.read_parquet(path, shown, chunk_rows)
    except PermissionError:
        raise _failure(shown, "a file you may read", "no permission to read it", "Change its permissions.") from None


def split_files(folder: Path, shown: str, beside: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[Finding]]:
    """The files of each split in a folder, those of other names that are wanted, and what was left aside.

    Raises:
        DataError: there are no split files, or two that claim to be the same split.
    """
    found: dict[str, list[str]] = {}
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        ending = _file_ending(path)
        if not path.is_file() or ending not in ENDINGS:
            continue
        name = _SHARD.sub("", path.stem.lower())
        split = name if name in beside else _SPLIT_NAMES.get(name)
        if split is None:
            others += [path.name] if ending != ".json" else []  # such as meta.json, dataset_info.json
        else:
            found.setdefault(split, []).append(os.path.join(shown, path.name))  # noqa: PTH118  (as the user wrote it)
    doubtful = [
        files for files in found.values() if len(files) > 1 and not all(_SHARD.search(Path(f).stem) for f in files)
    ]
    if doubtful:
        names = [", ".join(Path(file).name for file in files) for files in doubtful]
        raise _failure(shown, "one file for each split", "; ".join(names), "Leave one of them in the folder.")
    if not found.keys() - set(beside):
        got = f"only {', '.join(others)}" if others else "no data files"
        todo = "Rename the files, or give the path of one file: it is cut into splits."
        raise _failure(shown, f"a folder with train, validation and test files ({', '.join(ENDINGS)})", got, todo)
    notes = []
    if others:
        message = f"Not read, because their names are not train, validation or test: {', '.join(others)}."
        notes.append(finding("ignored-file", "info", message, file=shown))
    return {name: found[name] for name in (*SPLITS, *beside) if name in found}, notes


def frame_hash(table: Table) -> str:
    """The SHA-256 of a table's Arrow data, for sources that are not files."""
    digest = hashlib.sha256()
    for name, column in zip(table.names, table.columns.columns, strict=True):
        digest.update(f"{name}\0{column.type}\0".encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([(name, column.type)])) as writer:
            writer.write_table(pa.table([column.combine_chunks()], names=[name]))
        digest.update(sink.getvalue())
    return digest.hexdigest()


_Piece = tuple[Table, list[Flaw], str]


def _read_file(path: Path, shown: str) -> _Piece:
    flaws: list[Flaw] = []

    def tables() -> Iterator[Table]:
        for table, found in chunks(path, shown, _CHUNK):
            refuse_names(table.names, Where(file=shown), "Rename the columns.")
            flaws.extend(found)
            yield table

    pieces = tables()
    first = next(pieces, None)
    if first is None:
        raise _failure(shown, "rows", "an empty file", "Check that the file was written completely.")
    table = concatenate(chain([first], pieces))
    if len(table) == 0 and not any(flaw.problem for flaw in flaws):
        got = f"only a header ({some(table.names)})" if table.names else "no rows"
        raise _failure(shown, "at least one row", got, "Check that the file was written completely.")
    return table, flaws, sha256(path)


def _neighbours(path: Path, names: Sequence[str]) -> dict[str, _Piece]:
    """The files of these names in the folder of another."""
    found: dict[str, Path] = {}
    for file in sorted(path.parent.iterdir()) if names else ():
        name = file.stem.lower()
        if name in names and _file_ending(file) in ENDINGS and file.is_file() and file != path:
            if name in found:
                raise _failure(
                    str(file), f"one file called {name}", f"{found[name].name} as well", "Leave one of them."
                )
            found[name] = file
    return {name: _read_file(file, str(file)) for name, file in found.items()}


def _read_shards(files: Sequence[str]) -> _Piece:
    pieces = [_read_file(Path(file), file) for file in files]
    if len(pieces) == 1:
        return pieces[0]
    digest = hashlib.sha256("".join(piece[2] for piece in pieces).encode()).hexdigest()
    table = concatenate([piece[0] for piece in pieces])
    return table, [flaw for piece in pieces for flaw in piece[1]], digest


def _merge(files: Mapping[str, Any], on_bad_row: str) -> Reading:
    """Read all splits before complaining, so that every problem is told at once."""
    pieces: dict[str, _Piece] = {}
    problems: list[Problem] = []
    message = ""
    for split, source in files.items():
        try:
            if isinstance(source, list):
                pieces[split] = _read_shards(source)
            elif columnar.is_frame(source):
                table, flaws = columnar.read_frame(source)
                pieces[split] = (table, flaws, frame_hash(table))
            else:
                pieces[split] = _read_file(Path(source), os.fspath(source))
        except DataError as error:
            message = message or error.message
            problems += error.problems
    if problems:
        raise DataError(message if len(problems) == 1 else "Some of the data cannot be read.", problems)
    return _reading(pieces, on_bad_row)


def _reading(pieces: Mapping[str, _Piece], on_bad_row: str) -> Reading:
    findings: list[Finding] = []
    problems: list[Problem] = []
    for name, (table, flaws, _) in pieces.items():
        refuse_names(table.names, Where(file=table.file), "Rename the columns.")
        split = None if name == "all" else name
        told, wrong = summarise(flaws, split=split, file=table.file, on_bad_row=on_bad_row)
        findings += told
        problems += wrong
    tables = {name: table for name, (table, _, _) in pieces.items()}
    fingerprint = {name: digest for name, (_, _, digest) in pieces.items()}
    return Reading(tables, tuple(problems), tuple(findings), fingerprint)


def _named(source: Mapping[Any, Any]) -> dict[str, Any]:
    """Splits by their standard names."""
    result: dict[str, Any] = {}
    for name, value in source.items():
        split = _SPLIT_NAMES.get(str(name).lower(), str(name))
        if split in result:
            names = ", ".join(map(str, source))
            raise _failure(None, "different splits", f"two that mean {split} among {names}", "Leave one of them out.")
        if not columnar.is_frame(value) and not isinstance(value, str | os.PathLike):
            got = f"{type(value).__name__} for {name!r}"
            raise _failure(None, "a path, a DataFrame or a Dataset for each split", got, "Hand over one of these.")
        result[split] = value
    if not result:
        raise _failure(None, "splits", "an empty dict", 'Hand over {"train": …, "test": …}.')
    return result


def _is_folder(path: Path, shown: str) -> bool:
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return True
    except PermissionError:
        raise _failure(shown, "a folder you may read", "no permission to read it", "Change its permissions.") from None
    except OSError as error:  # a name that no file can have
        raise _failure(shown, "a path", error.strerror or str(error), "Check the path.") from None
    return False


def _readable(path: Path, shown: str) -> str:
    """The standard ending of a file that is there."""
    if _is_folder(path, shown):
        raise _failure(shown, "a file", "a folder", "Give the path of one file.")
    if not path.exists():
        expected = "a file, a folder, a catalog name or a hub name"
        raise _failure(shown, expected, "nothing at that path", "Check the path.")
    if not path.is_file():
        raise _failure(shown, "an ordinary file", "a device or a pipe", "Save the data to a file first.")
    ending = _file_ending(path)
    if ending not in ENDINGS:
        got = f"the ending {path.suffix!r}" if path.suffix else "a name without an ending"
        raise _failure(shown, f"a file that ends in one of {', '.join(ENDINGS)}", got, "Convert or rename the file.")
    return ending


def _file_ending(path: Path) -> str:
    ending = path.suffix.lower()
    return _SAME_ENDING.get(ending, ending)


def _failure(shown: str | None, expected: str, got: str, todo: str) -> DataError:
    problem = Problem(where=Where(file=shown), expected=expected, got=got, todo=todo)
    return DataError(f"Cannot read the data {shown}." if shown else "Cannot read the data.", [problem])
