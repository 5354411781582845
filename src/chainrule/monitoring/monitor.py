"""A monitor: what is predicted goes into its file, and comes out as alarms, estimates and queues."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.monitoring.accuracy import estimate
from chainrule.monitoring.features import SIZE, Features, Gauge
from chainrule.monitoring.reference import Reference, Said, reference_of
from chainrule.monitoring.settings import Settings
from chainrule.monitoring.store import Store
from chainrule.monitoring.windows import Alarm, close_window

MOST_SEGMENTS = 5_000  # segments with their labels that are counted in a window; what comes beyond them is not
LONGEST_NAME = 100  # characters of a segment
GAP = 2_000  # windows; a longer silence in the times of rows is not watched


@dataclass
class Watched:
    """A model that is watched.

    Attributes:
        kind: of what it predicts.
        labels: that it may predict.
        gauge: measures its rows; None where they are not measured.
        reference: what is usual; None until enough rows were served.
    """

    kind: str
    labels: tuple[str, ...]
    gauge: Gauge | None = None
    reference: Reference | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of one model that were predicted at the same time.

    Attributes:
        ids: a name for each row, which feedback refers to.
        segments: of each row, whose counts are watched label by label; None where there are none.
        inputs: the rows as JSON; None where they are not kept.
        time: seconds since 1970; None for now.
    """

    model: str
    ids: Sequence[str]
    said: Said
    features: Features | None = None
    segments: Sequence[Sequence[str]] | None = None
    inputs: Sequence[str] | None = None
    time: float | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Monitor:
    """Counts what is predicted, and raises alarms.

    Attributes:
        models: by name.
        alarmed: told each alarm once it is in the file.
        sends: whether alarms wait in the file to be sent somewhere.
    """

    store: Store
    settings: Settings
    models: dict[str, Watched]
    alarmed: Callable[[Alarm], None] = field(default=lambda alarm: None)
    sends: bool = False
    _last: dict[str, float] = field(default_factory=dict)  # until when the windows of a model have been watched
    _names: dict[tuple[str, int], set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with self.store.writing():
            for name, watched in self.models.items():
                self.watch(name, watched)
            self.store.set_meta("settings", self.settings.model_dump_json())

    def watch(self, name: str, watched: Watched) -> None:
        """Begin to watch a model, or a new version of it; the counts of an earlier version are gone on with."""
        known = self.store.meta(f"reference/{name}")
        if watched.reference is None and known is not None:
            before = Reference.model_validate_json(known)
            watched.reference = before if before.source == "served" else None
        elif watched.reference is not None and watched.reference.model_dump_json() != known:
            last = self.store.one("SELECT max(number) FROM windows WHERE model = ?", (name,))[0]
            self._refer(name, watched.reference, None if known is None or last is None else last + 1)
        self.models[name] = watched
        self.store.set_meta(f"labels/{name}", json.dumps(watched.labels))

    def record(self, batch: Batch) -> list[Alarm]:
        """Keep what was predicted; once this returns it is in the file, whatever happens to the process."""
        return self.record_all([batch])

    def record_all(self, batches: Sequence[Batch]) -> list[Alarm]:
        """The same of several batches in one transaction."""
        alarms: list[Alarm] = []
        with self.store.writing():
            for batch in batches:
                now = clock.time() if batch.time is None else batch.time
                if not self.settings.span.of_rows:
                    alarms += self._elapse(batch.model, now)
                for piece, number in self._pieces(batch):
                    self._insert(piece, now)
                    self._count(piece, number)
                    if self.settings.span.of_rows:
                        alarms += self._close(batch.model, self._number(batch.model), now)
                self._begin(batch.model)
            self._limit()
            self._hold(alarms)
        return self._told(alarms)

    def tick(self, now: float | None = None) -> list[Alarm]:
        """Let time go on: windows end, and texts whose time is over are erased."""
        now = clock.time() if now is None else now
        alarms: list[Alarm] = []
        with self.store.writing():
            self.store.run("UPDATE predictions SET inputs = NULL, until = NULL WHERE until < ?", (clock.time(),))
            if not self.settings.span.of_rows:
                for model in self.models:
                    alarms += self._elapse(model, now)
            self._hold(alarms)
        return self._told(alarms)

    def now(self) -> float:
        """Seconds since 1970."""
        return clock.time()

    def count_shadow(self, model: str, same: int, other: int) -> None:
        """Count the rows that a shadow says the same of as the model that answered, and those it does not."""
        number = self._number(model)
        with self.store.writing():
            self.store.run_many(
                "INSERT INTO counts VALUES (?, ?, 'shadow', ?, ?)"
                " ON CONFLICT DO UPDATE SET value = value + excluded.value",
                [(model, number, "same", same), (model, number, "other", other)],
            )

    def renew(self, name: str, watched: Watched) -> None:
        """Go on with a new version of a model."""
        with self.store.writing():
            self.watch(name, watched)

    def _pieces(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """The batch, cut where a window of rows ends, and the windows its pieces belong to."""
        if not self.settings.span.of_rows:
            yield batch, self._number(batch.model)
            return
        size, start = int(self.settings.span.size), 0
        while start < len(batch):
            total = self._rows(batch.model)
            stop = min(len(batch), start + size - total % size)
            yield cut(batch, start, stop), total // size
            start = stop

    def _rows(self, model: str) -> int:
        return int(self.store.meta(f"rows/{model}") or 0)

    def _number(self, model: str) -> int:
        """The window that is open now."""
        if self.settings.span.of_rows:
            return self._rows(model) // int(self.settings.span.size)
        return int(self._last.get(model, clock.time()) // self.settings.span.size)

    def _elapse(self, model: str, now: float) -> list[Alarm]:
        """Watch until now: the windows in between get their exposures, and those that are over are closed."""
        size = self.settings.span.size
        last = self._last.setdefault(model, now)
        if now - last > GAP * size:
            last = now
        while last < now:
            number = int(last // size)
            end = min(now, (number + 1) * size)
            self._expose(model, number, max(end - last, 0.0))
            last = max(end, np.nextafter(last, np.inf))
        self._last[model] = max(last, now)
        return self._close(model, int(self._last[model] // size), now)

    def _expose(self, model: str, number: int, exposure: float) -> None:
        self.store.run(
            "INSERT INTO windows (model, number, exposure) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET exposure = exposure + excluded.exposure",
            (model, number, exposure),
        )

    def _close(self, model: str, number: int, now: float) -> list[Alarm]:
        """Close the windows before this one."""
        over = self.store.all(
            "SELECT number FROM windows WHERE model = ? AND closed = 0 AND number < ? ORDER BY number", (model, number)
        )
        alarms: list[Alarm] = []
        for (place,) in over:
            reference = self.models[model].reference
            if reference is not None:
                estimate(self.store, model, place, reference)
            alarms += close_window(self.store, self.settings, model, place, now, reference)
            self._names.pop((model, place), None)
        return alarms

    def _insert(self, batch: Batch, now: float) -> None:
        said, features, reference = batch.said, batch.features, self.models[batch.model].reference
        far = _far(len(batch), features, reference)
        lowest = self.settings.low if self.settings.low is not None else getattr(reference, "low", None)
        kept = self.settings.keep_text
        until = None if kept is None or batch.inputs is None else clock.time() + kept
        values = []
        for place, name in enumerate(batch.ids):
            score = None if said.scores is None else float(said.scores[place])
            low = said.confident and score is not None and lowest is not None and score < lowest
            length = unknown = vector = None
            if features is not None:
                length = int(features.lengths[place])
                unknown = None if features.unknown is None else float(features.unknown[place])
                vector = None if features.vectors is None else features.vectors[place].astype("<f4").tobytes()
            inputs = None if until is None or batch.inputs is None else batch.inputs[place]
            labels = json.dumps(list(said.labels[place]), ensure_ascii=False)
            row = (name, batch.model, now, labels, score, length, unknown, vector, int(far[place]), int(low))
            values.append((*map(_storable, row), _storable(inputs), until))
        columns = "id, model, time, labels, score, length, unknown, vector, far, low, inputs, until"
        self.store.run_many(f"INSERT OR REPLACE INTO predictions ({columns}) VALUES ({'?, ' * 11}?)", values)

    def _count(self, batch: Batch, number: int) -> None:
        """Add to the counts of a window."""
        said, features, counts = batch.said, batch.features, dict[tuple[str, str], float]()
        counts["rows", ""] = len(batch)
        for place, labels in enumerate(said.labels):
            for label in dict.fromkeys(labels):
                _add(counts, "label", label)
            for segment in dict.fromkeys(batch.segments[place] if batch.segments else ()):
                _add(counts, "segment", segment)
        self._few_segments(batch.model, number, counts)
        reference = self.models[batch.model].reference
        if reference is not None:
            for kind, name, value in binned(reference, said, features):
                _add(counts, kind, name, value)
        total = self._rows(batch.model) + len(batch)
        self.store.set_meta(f"rows/{batch.model}", str(total))
        if self.settings.span.of_rows:
            self._expose(batch.model, number, len(batch))
        self.store.run_many(
            "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(batch.model, number, kind, _storable(name), value) for (kind, name), value in counts.items()],
        )

    def _few_segments(self, model: str, number: int, counts: dict[tuple[str, str], float]) -> None:
        """Leave out segments beyond the number that is counted in a window."""
        if (model, number) not in self._names:
            question = "SELECT name FROM counts WHERE model = ? AND number = ? AND kind = 'segment'"
            self._names[model, number] = {name for (name,) in self.store.all(question, (model, number))}
        known = self._names[model, number]
        for kind, name in list(counts):
            if kind == "segment" and name not in known:
                if len(known) < MOST_SEGMENTS:
                    known.add(name)
                else:
                    del counts[kind, name]

    def _begin(self, model: str) -> None:
        """Make a reference of the first rows that are served, where the model has none."""
        watched = self.models[model]
        if watched.reference is not None or self._rows(model) < self.settings.first:
            return
        rows = self.store.all(
            "SELECT labels, score, length, unknown, vector FROM predictions WHERE model = ? ORDER BY seq", (model,)
        )
        labels, scores, lengths, unknown, vectors = zip(*rows, strict=True)
        said = Said(
            [tuple(json.loads(each)) for each in labels],
            None if None in scores else np.array(scores, float),
            confident=watched.kind == "class",
        )
        features = None
        if None not in lengths:
            short = None if None in vectors else np.array([np.frombuffer(each, "<f4") for each in vectors], float)
            features = Features(np.array(lengths), None if None in unknown else np.array(unknown, float), short)
        reference = reference_of("served", said, features)
        if reference is not None:
            watched.reference = reference
            self._refer(model, reference, self._number(model) + 1)

    def _refer(self, model: str, reference: Reference, since: int | None) -> None:
        """Keep a reference, which windows from `since` on are compared with."""
        self.store.set_meta(f"reference/{model}", reference.model_dump_json())
        self.store.run("DELETE FROM charts WHERE model = ? AND kind = 'drift'", (model,))
        if since is not None:
            self.store.run("INSERT INTO charts (model, kind, name, since) VALUES (?, 'drift', '', ?)", (model, since))

    def _limit(self) -> None:
        """Let the oldest rows make room."""
        for table in ("predictions", "feedback"):
            self.store.run(
                f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?", (self.settings.rows,)
            )

    def _hold(self, alarms: Sequence[Alarm]) -> None:
        if alarms and self.sends:
            for alarm in alarms:
                self.store.run(
                    "UPDATE alarms SET delivery = 'pending' WHERE model = ? AND kind = ? AND name = ? AND number = ?",
                    (alarm.model, alarm.kind, alarm.name, alarm.number),
                )

    def _told(self, alarms: list[Alarm]) -> list[Alarm]:
        for alarm in alarms:
            self.alarmed(alarm)
        return alarms


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Some rows of a batch."""
    said, features, part = batch.said, batch.features, slice(start, stop)
    scores, right = (None if array is None else array[part] for array in (said.scores, said.correct))
    some = None
    if features is not None:
        unknown, vectors = (None if array is None else array[part] for array in (features.unknown, features.vectors))
        some = Features(features.lengths[part], unknown, vectors)
    return Batch(
        batch.model,
        batch.ids[part],
        Said(said.labels[part], scores, right, said.confident),
        some,
        None if batch.segments is None else batch.segments[part],
        None if batch.inputs is None else batch.inputs[part],
        batch.time,
    )


def binned(reference: Reference, said: Said, features: Features | None) -> Iterator[tuple[str, str, float]]:
    """What is added to the counts that are compared with a reference: kind, name, how much."""
    pairs = [("score", reference.scores, said.scores)]
    if features is not None:
        pairs += [("length", reference.lengths, features.lengths), ("unknown", reference.unknown, features.unknown)]
    for kind, bins, values in pairs:
        if bins is not None and values is not None:
            for place in bins.bins(np.asarray(values, float)).tolist():
                yield kind, str(place), 1.0
    if reference.threshold is not None and said.scores is not None:
        yield "above", "", float((said.scores >= reference.threshold).sum())
    if reference.vectors is not None and features is not None and features.vectors is not None:
        sums = features.vectors.sum(axis=0)
        yield from (("vector", str(place), float(sums[place])) for place in range(SIZE))


def segments_of(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """What is watched of a row: each of its labels on each of its segments."""
    return [f"{label} on {' '.join(name.split())[:LONGEST_NAME]}" for label in labels for name in names if name.strip()]


def _far(rows: int, features: Features | None, reference: Reference | None) -> np.ndarray:
    """(rows,) whose vectors are far from those of the reference."""
    if features is None or features.vectors is None or reference is None or reference.vectors is None:
        return np.zeros(rows, bool)
    found: np.ndarray = reference.vectors.distances(features.vectors) > reference.vectors.far
    return found


def _add(counts: dict[tuple[str, str], float], kind: str, name: str, value: float = 1.0) -> None:
    counts[kind, name] = counts.get((kind, name), 0.0) + value


def _storable(value: Any) -> Any:
    """Half of a surrogate pair, which SQLite cannot hold, is written as an escape."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def models_of(store: Store) -> Mapping[str, tuple[str, ...]]:
    """The models that a file knows, with their labels."""
    rows = store.all("SELECT key, value FROM meta WHERE key LIKE 'labels/%' ORDER BY key")
    return {key.removeprefix("labels/"): tuple(json.loads(value)) for key, value in rows}
