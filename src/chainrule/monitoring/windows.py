"""What happens at the end of a window: counts are compared with those before, and alarms are raised.

All of it is computed from the file and written back in the same transaction, so a killed process loses no window and
raises no alarm twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from chainrule.monitoring.charts import FEWEST, SLACK, Count, draw_of, limit_for, spread_of
from chainrule.monitoring.drift import Drift, count_drift, vector_drift
from chainrule.monitoring.features import SIZE
from chainrule.monitoring.reference import Binned, Reference
from chainrule.monitoring.settings import Settings, Span
from chainrule.monitoring.store import Store

BEFORE = 672  # windows that say what is usual: of an hour, four weeks
CYCLES = 28  # the same of cycles
ADAPT = 24  # windows after which a surge that goes on is the new usual
USUAL = 0.05  # a surge is over once a window is no more surprising than that
MOST_CHARTS = 1_000  # segments with their labels that are watched at a time
KEPT = 5_000  # windows whose counts are kept
WATCHED = ("label", "segment")  # kinds of counts that may surge
DRIFTS = ("label", "length", "unknown", "score", "vector")


@dataclass(frozen=True)
class Alarm:
    """Something that is hardly chance.

    Attributes:
        kind: "surge" of a label, "segment-surge", or "drift".
        name: what it is about.
        number: of the window at whose end it was raised.
        told: the numbers behind the message.
    """

    model: str
    kind: str
    name: str
    number: int
    time: float
    message: str
    told: dict[str, Any] = field(default_factory=dict)


@dataclass
class Chart:
    """The state of a chart.

    Attributes:
        cusum, begun: its CUSUM, and the window in which that left zero.
        open: windows that a surge has lasted; 0 for none.
        since: the window from which on windows say what is usual.
    """

    cusum: float = 0.0
    begun: int = 0
    open: int = 0
    since: int = 0


def close_window(
    store: Store, settings: Settings, model: str, number: int, time: float, reference: Reference | None
) -> list[Alarm]:
    """Look at a window that is over; to be called inside `store.writing()`.

    Returns:
        The alarms, which are in the file by then.
    """
    alarms = [*_surges(store, settings, model, number, time)]
    if reference is not None:
        alarms += _drifts(store, settings, model, number, reference, time)
    store.run_many(
        "INSERT INTO alarms (time, model, kind, name, number, message, told) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(a.time, a.model, a.kind, a.name, a.number, a.message, json.dumps(a.told)) for a in alarms],
    )
    store.run("UPDATE windows SET closed = 1 WHERE model = ? AND number = ?", (model, number))
    for table in ("windows", "counts", "excluded"):
        store.run(f"DELETE FROM {table} WHERE model = ? AND number < ?", (model, number - KEPT))
    return alarms


def _surges(store: Store, settings: Settings, model: str, number: int, time: float) -> Iterator[Alarm]:
    span, period = settings.span, settings.period
    first = number - max(BEFORE, CYCLES * period)
    windows = store.all(
        "SELECT number, exposure FROM windows WHERE model = ? AND number BETWEEN ? AND ?", (model, first, number)
    )
    places, exposures = np.array([place for place, _ in windows]), np.array([exposure for _, exposure in windows])
    counts = _counts(store, model, first, number)
    names = _watched(counts, number)
    charts = {
        (kind, name): Chart(*rest)
        for kind, name, *rest in store.all(
            "SELECT kind, name, cusum, begun, open, since FROM charts WHERE model = ? AND kind != 'drift'", (model,)
        )
    }
    left_out: dict[tuple[str, str], set[int]] = {}
    for kind, name, place in store.all("SELECT kind, name, number FROM excluded WHERE model = ?", (model,)):
        left_out.setdefault((kind, name), set()).add(place)
    share = settings.budget / 2 / max(len(names), 1)  # the other half is drift's
    for key in names:
        chart = charts.get(key, Chart(since=first))
        seen = np.array([counts[key].get(place, 0) for place in places.tolist()])
        usual = ~np.isin(places, list(left_out.get(key, ())))
        look = Look(key, number, places, exposures, seen, usual, period)
        alarm = surge(look, chart, share, span)
        if chart.open:
            store.run("INSERT OR IGNORE INTO excluded VALUES (?, ?, ?, ?)", (model, *key, number))
        store.run(
            "INSERT OR REPLACE INTO charts VALUES (?, ?, ?, ?, ?, ?, ?)",
            (model, *key, chart.cusum, chart.begun, chart.open, chart.since),
        )
        if alarm is not None:
            message, told = alarm
            yield Alarm(model, "surge" if key[0] == "label" else "segment-surge", key[1], number, time, message, told)


def _counts(store: Store, model: str, first: int, last: int) -> dict[tuple[str, str], dict[int, int]]:
    found: dict[tuple[str, str], dict[int, int]] = {}
    rows = store.all(
        "SELECT kind, name, number, value FROM counts"
        " WHERE model = ? AND number BETWEEN ? AND ? AND kind IN ('label', 'segment')",
        (model, first, last),
    )
    for kind, name, number, value in rows:
        found.setdefault((kind, name), {})[number] = round(value)
    return found


def _watched(counts: Mapping[tuple[str, str], Mapping[int, int]], number: int) -> list[tuple[str, str]]:
    """What has been seen before this window: the charts are chosen without looking at what is judged."""
    before = {key: sum(n for place, n in seen.items() if place < number) for key, seen in counts.items()}
    labels = sorted(key for key, n in before.items() if key[0] == "label" and n)
    segments = sorted((key for key, n in before.items() if key[0] == "segment" and n), key=lambda key: -before[key])
    return labels + segments[:MOST_CHARTS]


@dataclass(frozen=True)
class Look:
    """What is known of one chart.

    Attributes:
        places: (w,) the windows there are, `exposures` (w,) of them, and `seen` (w,) in them.
        usual: (w,) which say what is usual: those without a surge.
        period: windows of a cycle; a window is compared with those at the same point of earlier ones.
    """

    key: tuple[str, str]
    number: int
    places: np.ndarray
    exposures: np.ndarray
    seen: np.ndarray
    usual: np.ndarray
    period: int = 1

    def count(self, since: int, of_rows: bool) -> Count:
        """What was seen in the window, and in the usual windows before, from `since` on."""
        before = self._like(self.number, since, self.number)
        usual, exposures = self.seen[before], self.exposures[before]
        spread = spread_of(usual, exposures, of_rows)
        late = self.places == self.number
        sums = (int(self.seen[late].sum()), float(self.exposures[late].sum()))
        return Count(*sums, int(usual.sum()), float(exposures.sum()), of_rows, spread)

    def late(self, since: int, first: int) -> tuple[int, float]:
        """How many were seen from window `first` on, and how many the usual windows before it expect."""
        expected = 0.0
        for place, exposure in zip(self.places.tolist(), self.exposures.tolist(), strict=True):
            if place >= first:
                before = self._like(place, since, first)
                expected += exposure * self.seen[before].sum() / max(self.exposures[before].sum(), 1e-9)
        return int(self.seen[self.places >= first].sum()), float(expected)

    def known(self, since: int) -> int:
        """How many usual windows the window is compared with."""
        return int(self._like(self.number, since, self.number).sum())

    def _like(self, place: int, since: int, until: int) -> np.ndarray:
        """(w,) the usual windows in between, at the same point of the cycle as `place`."""
        inside = self.usual & (self.places >= since) & (self.places < until)
        found: np.ndarray = inside & ((place - self.places) % self.period == 0)
        return found


def surge(look: Look, chart: Chart, share: float, span: Span) -> tuple[str, dict[str, Any]] | None:
    """Bring a chart up to date; what is to be said if it gives an alarm.

    Args:
        share: false alarms that this chart may give in a window.
    """
    if look.known(chart.since) < FEWEST:
        return None  # whether counts come in bursts is not known yet
    now = look.count(chart.since, span.of_rows)
    surprise = now.surprise()
    if chart.open:
        chart.open = 0 if surprise >= USUAL else chart.open + 1
        if chart.open > ADAPT:  # what goes on for so long is what is usual now
            chart.open, chart.since, chart.cusum = 0, look.number, 0.0
        return None
    before = chart.cusum
    chart.cusum = max(0.0, before + now.score(draw_of(*look.key, look.number)) - SLACK)
    if chart.cusum > 0 and before == 0:
        chart.begun = look.number
    limit = limit_for(float(f"{2 / share:.3g}"))
    if surprise >= share / 2 and chart.cusum <= limit:
        return None
    sudden = surprise < share / 2
    seen, expected = (now.seen, now.expected) if sudden else look.late(chart.since, chart.begun)
    windows = 1 if sudden else look.number - chart.begun + 1
    told = {"count": seen, "expected": round(expected, 3), "windows": windows, "window": span.text}
    told |= {"chart": "window" if sudden else "cusum", "probability": surprise, "cusum": round(chart.cusum, 3)}
    chart.open, chart.cusum = 1, 0.0
    return f"{look.key[1]}: {seen} in the last {span.times(windows)}, {_few(expected)} expected", told


def _few(number: float) -> str:
    return "none" if number == 0 or not math.isfinite(number) else f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _drifts(
    store: Store, settings: Settings, model: str, number: int, reference: Reference, time: float
) -> Iterator[Alarm]:
    """Compare the rows since the last comparison with the reference, once there are enough."""
    found = store.one("SELECT since FROM charts WHERE model = ? AND kind = 'drift' AND name = ''", (model,))
    if found is None:
        found = (store.one("SELECT min(number) FROM windows WHERE model = ?", (model,))[0],)
    values = store.all(
        "SELECT kind, name, sum(value) FROM counts WHERE model = ? AND number BETWEEN ? AND ? GROUP BY kind, name",
        (model, found[0], number),
    )
    sums: dict[str, dict[str, float]] = {}
    for kind, name, value in values:
        sums.setdefault(kind, {})[name] = value
    rows = int(sums.get("rows", {}).get("", 0))
    if rows < settings.drift_rows:
        return
    store.run(
        "INSERT OR REPLACE INTO charts (model, kind, name, since) VALUES (?, 'drift', '', ?)", (model, number + 1)
    )
    share = settings.budget / 2 / len(DRIFTS)
    opened = dict(store.all("SELECT name, open FROM charts WHERE model = ? AND kind = 'drift'", (model,)))
    for drift in _compared(reference, sums, rows, share):
        store.run("INSERT OR REPLACE INTO counts VALUES (?, ?, 'drift', ?, ?)", (model, number, drift.what, drift.size))
        beyond = drift.probability < share
        store.run(
            "INSERT OR REPLACE INTO charts (model, kind, name, open) VALUES (?, 'drift', ?, ?)",
            (model, drift.what, int(beyond or (opened.get(drift.what, 0) and drift.probability < USUAL))),
        )
        if beyond and not opened.get(drift.what):
            told = {"probability": drift.probability, "size": drift.size, "limit": drift.limit, "rows": drift.rows}
            yield Alarm(model, "drift", drift.what, number, time, _drift_message(drift, reference), told)


def _compared(
    reference: Reference, sums: Mapping[str, Mapping[str, float]], rows: int, share: float
) -> Iterator[Drift]:
    found: list[Drift | None] = []
    if sum(reference.labels.values()) == reference.rows:  # of several labels a row the counts are not independent
        names = sorted({*reference.labels, *sums.get("label", {})})
        usual, late = (
            [counts.get(name, 0.0) for name in names] for counts in (reference.labels, sums.get("label", {}))
        )
        found.append(count_drift("label", usual, late, share, names))
    for what, kept in (("length", reference.lengths), ("unknown", reference.unknown), ("score", reference.scores)):
        if kept is not None and what in sums:
            now = [sums[what].get(str(place), 0.0) for place in range(len(kept.counts))]
            found.append(count_drift(what, kept.counts, now, share, _bin_names(kept)))
    if reference.vectors is not None and "vector" in sums:
        mean = np.array([sums["vector"].get(str(place), 0.0) for place in range(SIZE)]) / rows
        kept_moments = (np.array(reference.vectors.mean), np.array(reference.vectors.covariance), reference.rows)
        found.append(vector_drift(kept_moments, (mean, rows), share))
    return (drift for drift in found if drift is not None)


def _bin_names(binned: Binned) -> list[str]:
    edges = [f"{edge:.6g}" for edge in binned.edges]
    if not edges:
        return ["all"]
    middle = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"up to {edges[0]}", *middle, f"above {edges[-1]}"]


_WHAT = {
    "label": "predicted labels",
    "length": "lengths in tokens",
    "unknown": "shares of unknown tokens",
    "score": "scores",
    "vector": "words (mean embeddings)",
}


def _drift_message(drift: Drift, reference: Reference) -> str:
    whose = "of validation" if reference.source == "validation" else "served first"
    more = f" ({drift.told})" if drift.told else ""
    return (
        f"The {_WHAT[drift.what]} of the last {drift.rows:,} rows are not those of the rows {whose}{more}: "
        f"distance {drift.size:.3g}, {drift.limit:.3g} by chance"
    )
