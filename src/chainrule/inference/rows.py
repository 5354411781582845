"""Predictions of texts and of files, one dictionary a row, and streams of them into files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from chainrule.data.stream import Inputs, load_inputs
from chainrule.data.table import Table, text_of
from chainrule.errors import DataError, OutputError, Problem, Where
from chainrule.inference.answers import encode_rows, refuse_unreadable, rows_cut, rows_said, with_ranks
from chainrule.inference.generate import Writing, write_texts
from chainrule.inference.given import texts_given
from chainrule.inference.predict import Predictor
from chainrule.inference.ranks import RANK, SCORE, Row, best_items, ranked_chunks
from chainrule.inference.words import ANSWER, BEGIN, ENTITIES, LABEL, TAGS, VECTOR
from chainrule.system.files import atomic_path, refuse_existing
from chainrule.system.progress import Display

CHUNK_ROWS = 2048
CHUNK_REPLIES = 64  # a reply takes a second or so; this many are written before the file grows again
REPLY, FINISHED = "predicted_text", "predicted_finished"

ARRAYS = (".npy", ".safetensors")

_COLUMNS = {
    "reply": (REPLY, FINISHED),
    "preference": (REPLY, FINISHED),
    "written": (REPLY, FINISHED),
    "spans": (ENTITIES, TAGS),
    "answers": (ANSWER, BEGIN, SCORE),
    "relevances": (SCORE, RANK),
}
Chunk = tuple[Table, Mapping[str, Sequence[str]]]  # rows as they were read, and the texts that are read of them
Answered = tuple[Table, list[Row], np.ndarray]  # … what is predicted of them, and which were longer than is read
Answering = Callable[[Iterable[Chunk]], Iterator[Answered]]  # in the same order
Writer = Callable[[Sequence[str], Sequence[Row]], None]


def predict_texts(
    predictor: Predictor, inputs: Mapping[str, Sequence[str]], writing: Writing | None = None
) -> list[Row]:
    """Predictions for texts in memory, cleaned as the training texts were; takes and raises what `texts_given` does.

    Args:
        writing: how replies are written.
    """
    given = texts_given(predictor, inputs)
    count = len(next(iter(given.values())))
    found = answers_of(predictor, given, writing, np.arange(1, count + 1))[0]
    return with_ranks(given, found) if predictor.task.target.kind == "relevances" else found


def predict_file(
    predictor: Predictor,
    source: Any,
    out: Path,
    fields: Mapping[str, str],
    display: Display,
    answer: Answering,
) -> int:
    """Write the input's columns with the predictions beside them, in pieces: memory does not grow with the rows.

    The output appears whole or not at all; its format follows its ending (.csv, .tsv, .jsonl).

    Args:
        answer: what predicts, here or elsewhere.

    Returns:
        The number of rows.

    Raises:
        DataError: the input cannot be read, or has a column named like a prediction.
        OutputError: the output exists, cannot be written, or has another ending.
    """
    refuse_existing(out)
    inputs = open_rows(predictor, source, fields)
    for finding in inputs.findings:
        display.say(f"{finding.severity}: {finding.message} {finding.todo}".rstrip())
    with (
        display.bar("predicting", len(inputs)) as bar,
        atomic_path(out) as temporary,
        _opened(temporary, out, len(inputs) if predictor.task.embeds else None) as write,
    ):
        cut: list[int] = []
        unfinished = 0
        for names, rows in predicted_chunks(predictor, inputs, answer, cut):
            write(names, rows)
            bar.advance(len(rows))
            unfinished += sum(row.get(FINISHED) is False for row in rows)
    if cut:
        shown, more = ", ".join(map(str, cut[:10])), ", …" if len(cut) > 10 else ""
        limit = f"have more than {predictor.artifact.manifest.max_length} tokens and were read up to there"
        why = "are longer than the model reads; their beginnings were left out" if predictor.task.converses else limit
        display.say(f"warning: {len(cut):,} of {len(inputs):,} rows {why} (rows {shown}{more}).")
    if unfinished:
        told = f"{unfinished:,} of {len(inputs):,} replies had not ended when the limit of new tokens was reached"
        display.say(f"warning: {told} ({FINISHED} is false there). Raise --max-new-tokens.")
    return len(inputs)


def recommend_file(
    predictor: Predictor, source: Any, out: Path, top: int, fields: Mapping[str, str], display: Display
) -> int:
    """Write the best items for each user that a file names, a row an item, as `predict_file` writes.

    Returns:
        The number of rows.
    """
    refuse_existing(out)
    written = 0
    users, found = best_items(predictor, source, top, fields)
    with display.bar("recommending", users) as bar, atomic_path(out) as temporary, _opened(temporary, out) as write:
        for names, rows in found:
            write(names, rows)
            bar.advance(1)
            written += len(rows)
    return written


def open_rows(predictor: Predictor, source: Any, fields: Mapping[str, str]) -> Inputs:
    """The rows of a source, checked once.

    Raises:
        DataError: the source cannot be read, or has a column named like a prediction.
    """
    artifact = predictor.artifact
    kind = predictor.task.target.kind
    size = CHUNK_REPLIES if predictor.task.writes else CHUNK_ROWS
    inputs = load_inputs(source, predictor.task, artifact.manifest.fields, size, named=fields, clean=artifact.clean)
    for name in (VECTOR,) if predictor.task.embeds else _COLUMNS.get(kind, (LABEL, SCORE)):
        if name in inputs.columns:
            problem = Problem(
                where=Where(file=_shown(source), field=name),
                expected=f"no column {name!r} in the input",
                got="one",
                todo="Rename that column: the prediction would overwrite it.",
            )
            raise DataError(f"The input has a column {name!r} already.", [problem])
    return inputs


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def predicted_chunks(
    predictor: Predictor, inputs: Inputs, answer: Answering, cut: list[int] | None = None
) -> Iterator[tuple[list[str], list[Row]]]:
    """Column names and rows with predictions, chunk by chunk, in the order of the input.

    Args:
        answer: what predicts; lists are ranked here in any case.
        cut: takes the numbers of the rows (1-based) that were longer than the model reads.
    """
    if predictor.task.target.kind == "relevances":
        yield from ranked_chunks(predictor, inputs, cut)
        return
    for table, predicted, longer in answer(inputs):
        if cut is not None:
            cut += table.rows[longer].tolist()
        rows = [before | after for before, after in zip(table.columns.to_pylist(), predicted, strict=True)]
        yield [*table.names, *predicted[0]], rows


def answers_here(predictor: Predictor, writing: Writing | None = None) -> Answering:
    """Predicts in this process.

    Args:
        writing: how replies are written.
    """

    def answer(chunks: Iterable[Chunk]) -> Iterator[Answered]:
        for table, texts in chunks:
            yield table, *answers_of(predictor, texts, writing, table.rows)

    return answer


def answers_of(
    predictor: Predictor, inputs: Mapping[str, Sequence[str]], writing: Writing | None, numbers: np.ndarray
) -> tuple[list[Row], np.ndarray]:
    """What is predicted of each row, and a mask of the rows that were longer than the model reads.

    Args:
        numbers: what the rows are called in errors.
    """
    if predictor.task.writes:
        limit = None if predictor.task.converses else predictor.artifact.manifest.max_length
        how = writing or Writing()
        replies = write_texts(predictor.forward, predictor.tokenizer, predictor.task, inputs, how, limit)
        pairs = zip(replies.texts, replies.finished.tolist(), strict=True)
        return [{REPLY: text, FINISHED: finished} for text, finished in pairs], replies.cut
    encoded = encode_rows(predictor, inputs)
    refuse_unreadable(encoded, numbers)
    return rows_said(predictor, inputs, predictor.predict(encoded)), rows_cut(predictor, encoded)


@contextmanager
def _opened(path: Path, out: Path, vectors: int | None = None) -> Iterator[Writer]:
    """A writer into `path`, in the format that the ending of `out` says.

    Args:
        vectors: how many rows there will be, where each has a vector.
    """
    if vectors is not None and out.suffix in ARRAYS:
        with path.open("wb") as array:
            yield write_vectors(array, out.suffix, vectors)
        return
    if out.suffix not in (".csv", ".tsv", ".jsonl"):
        more = "" if vectors is None else f", or for vectors alone in {' or '.join(ARRAYS)}"
        problem = Problem(
            where=Where(file=str(out)),
            expected=f"an output that ends in .csv, .tsv or .jsonl{more}",
            got=out.suffix or "no ending",
            todo="Choose another --out.",
        )
        raise OutputError("The output format is not known.", [problem])
    with path.open("w", encoding="utf-8", newline="") as file:
        yield write_json_lines(file) if out.suffix == ".jsonl" else write_delimited(file, out.suffix)


def write_delimited(file: TextIO, ending: str) -> Writer:
    """A writer of CSV or TSV with a header line; lists and objects are written as JSON, as they are read."""
    delimiter = "\t" if ending == ".tsv" else ","
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    quoted = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    header: list[str] = []

    def write(names: Sequence[str], rows: Sequence[Row]) -> None:
        if not header:
            header.extend(names)
            writer.writerow(header)
        for row in rows:
            cells = [_cell(row.get(name)) for name in header]
            # before Python 3.13 the csv module leaves a lone carriage return unquoted, which ends the row for a reader
            (quoted if any(isinstance(cell, str) and "\r" in cell for cell in cells) else writer).writerow(cells)

    return write


def write_json_lines(file: TextIO) -> Writer:
    """A writer of one JSON object a line."""

    def write(names: Sequence[str], rows: Sequence[Row]) -> None:
        file.writelines(json.dumps(_plain(row), ensure_ascii=False, default=str) + "\n" for row in rows)

    return write


def write_vectors(file: BinaryIO, ending: str, rows: int) -> Writer:
    """A writer of the vectors alone, (rows, d) float32, as one array of NumPy or of safetensors ("vectors")."""

    def begin(size: int) -> None:
        if ending == ".npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
            np.lib.format.write_array_header_1_0(file, header)
            return
        tensor = {"dtype": "F32", "shape": [rows, size], "data_offsets": [0, 4 * rows * size]}
        text = json.dumps({"vectors": tensor}).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)

    def write(names: Sequence[str], few: Sequence[Row]) -> None:
        vectors = np.array([row[VECTOR] for row in few], "<f4")
        if file.tell() == 0:
            begin(vectors.shape[1])
        file.write(vectors.tobytes())

    return write


def _cell(value: Any) -> Any:
    return text_of(value) if isinstance(value, list | dict) else value


def _plain(value: Any) -> Any:
    """The value without what JSON does not know: NaN and infinities become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
