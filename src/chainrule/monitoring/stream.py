"""Rows that are predicted as they come, from a file or a pipe, and watched on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from chainrule.core.artifact import Artifact
from chainrule.errors import DataError, ModelError, Problem, Where
from chainrule.inference.answers import encode_rows, rows_said
from chainrule.inference.given import rows_given, texts_given
from chainrule.inference.predict import Predictor
from chainrule.inference.words import ENTITIES
from chainrule.monitoring.features import gauge_of
from chainrule.monitoring.lines import Line
from chainrule.monitoring.monitor import Batch, Monitor, Watched, cut, segments_of
from chainrule.monitoring.reference import read_reference
from chainrule.monitoring.said import said_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """What a stream's rows are predicted by, and where the predictions go.

    Attributes:
        name: of the model.
        time: the column that says when a row happened: seconds since 1970, or a date in the form of ISO 8601; None
            for when it came.
        id: the column that names a row; None draws a name.
        tell: told each prediction.
        complain: told what cannot be predicted.
    """

    predictor: Predictor
    monitor: Monitor
    name: str
    time: str | None
    id: str | None
    tell: Callable[[Row], None]
    complain: Callable[[str], None]


def watched_of(artifact: Artifact, predictor: Predictor) -> Watched:
    """A model as a monitor knows it.

    Raises:
        ModelError: the artifact's reference is damaged.
    """
    gauge = None if predictor.task.sees else gauge_of(predictor.tokenizer, predictor.forward.model)
    kind = predictor.task.target.kind
    return Watched(kind, artifact.manifest.labels, gauge, read_reference(artifact.path))


def refuse_writers(predictor: Predictor) -> None:
    """Raise ModelError for a model that writes texts."""
    if predictor.task.writes:
        problem = Problem("a model that labels, scores or finds", predictor.task.name, "Use `chainrule serve`.")
        raise ModelError("Texts that a model writes are not watched as a stream.", [problem])


def watch_stream(stream: Stream, lines: Iterator[list[Line]]) -> tuple[int, int]:
    """Predict rows as they come; what cannot be predicted is told by its line and left out.

    Args:
        lines: as `read_lines` gives them.

    Returns:
        How many rows were predicted, and how many could not be.
    """
    predicted = refused = 0
    for some in lines:
        good = []
        for number, row in some:
            if isinstance(row, DataError):
                _complain(stream, number, row)
                refused += 1
            else:
                good.append((number, row))
        done = _tried(stream, good) if good else 0
        predicted, refused = predicted + done, refused + len(good) - done
        if stream.time is None:
            stream.monitor.tick()
    return predicted, refused


def _tried(stream: Stream, lines: Sequence[tuple[int, Row | str]]) -> int:
    """Predict lines together, and in halves where one of them is wrong; how many were predicted."""
    try:
        rows = _predicted(stream, [row for _, row in lines])
    except DataError as error:
        if len(lines) == 1:
            _complain(stream, lines[0][0], error)
            return 0
        half = len(lines) // 2
        return _tried(stream, lines[:half]) + _tried(stream, lines[half:])
    for row in rows:
        stream.tell(row)
    return len(rows)


def _complain(stream: Stream, number: int, error: DataError) -> None:
    problem = error.problems[0] if error.problems else None
    why = error.message if problem is None else f"expected {problem.expected}, got {problem.got}. {problem.todo}"
    stream.complain(f"line {number}: {why}")


def _predicted(stream: Stream, rows: Sequence[Row | str]) -> list[Row]:
    """Predict and record rows, all of them or none.

    Raises:
        DataError: some cannot be predicted, or are of two kinds.
    """
    predictor, objects = stream.predictor, [row for row in rows if isinstance(row, dict)]
    if objects and len(objects) < len(rows):
        raise DataError("Objects and texts are read one by one.")
    times = [_time(row.get(stream.time), stream.time) for row in objects] if stream.time else []
    if stream.time and not objects:
        _time(None, stream.time)
    texts = [row for row in rows if isinstance(row, str)]
    inputs = texts_given(predictor, {"text": texts}) if texts else rows_given(predictor, objects)
    encoded = encode_rows(predictor, inputs)
    if encoded.refused:
        raise DataError(next(iter(encoded.refused.values())))
    predictions = predictor.predict(encoded)
    said = said_of(predictor.task.target.kind, predictor.artifact.manifest.labels, predictions)
    found = rows_said(predictor, inputs, predictions)
    settings, gauge = stream.monitor.settings, stream.monitor.models[stream.name].gauge
    ids = [_id(row, stream.id) for row in rows]
    segments = [
        row_segments(said.labels[place], found[place].get(ENTITIES), row, settings.segment)
        for place, row in enumerate(rows)
    ]
    kept = None if settings.keep_text is None else [kept_row(row, predictor.artifact) for row in rows]
    batch = Batch(stream.name, ids, said, None if gauge is None else gauge.measure(encoded), segments, kept)
    stream.monitor.record_all(_by_time(batch, times, settings.span.size))
    return [{"id": one} | row for one, row in zip(ids, found, strict=True)]


def _by_time(batch: Batch, times: Sequence[float], size: float) -> list[Batch]:
    """The batch in pieces that lie in one window each."""
    if not times:
        return [batch]
    ends = [place for place in range(1, len(times)) if times[place] // size != times[place - 1] // size]
    pieces = zip([0, *ends], [*ends, len(times)], strict=True)
    return [replace(cut(batch, start, stop), time=max(times[start:stop])) for start, stop in pieces]


def kept_row(row: Mapping[str, Any] | str, artifact: Artifact) -> str:
    """A row as it is kept: an object with the columns that the training data had."""
    manifest = artifact.manifest
    if isinstance(row, str):
        row = {manifest.fields.get(manifest.inputs[0], manifest.inputs[0]): row}
    return json.dumps(dict(row), ensure_ascii=False, default=str)


def row_segments(labels: Sequence[str], entities: Any, row: Any, column: str | None) -> list[str]:
    """What is watched of a row: its labels on the value of a column, and the entities that were found in it."""
    names = [name for one in entities or () for name in segments_of([one["label"]], [one["text"]])]
    if column and isinstance(row, Mapping) and row.get(column) is not None:
        names += segments_of(labels or ("rows",), [str(row[column])])
    return names


def _id(row: Row | str, column: str | None) -> str:
    given = row.get(column) if column and isinstance(row, dict) else None
    return uuid4().hex if given in (None, "") else str(given)[:500]


def _time(value: Any, column: str | None) -> float:
    """Seconds since 1970; a date without a zone is in UTC.

    Raises:
        DataError: it is neither a number nor a date.
    """
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = float(value)
        else:
            text = str(value).strip()
            try:
                seconds = float(text)
            except ValueError:
                moment = datetime.fromisoformat(text)
                seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if not 0 <= seconds < 1e11:
            raise ValueError
    except (ValueError, OverflowError):
        todo, where = "Correct the value, or name another column (--time).", Where(field=column)
        problem = Problem("seconds since 1970, or a date such as 2026-03-01T12:00:00Z", repr(value)[:80], todo, where)
        raise DataError("A time cannot be read.", [problem]) from None
    return seconds
