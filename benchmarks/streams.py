"""How often the monitor cries wolf, and how soon it sees a change: simulated streams against what is promised.

Streams of hourly counts go through the control chart of one label, with one false alarm promised in so many windows;
windows of rows go through the comparisons with a reference; whole monitors with their files watch made-up rows. Every
number comes with the 95 % interval of its simulation. Prints tables in the form of LOG.md.

    python benchmarks/streams.py
    python benchmarks/streams.py --runs 40 --windows 500     quickly
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.stats import chi2

from chainrule.monitoring.drift import count_drift, vector_drift
from chainrule.monitoring.features import Features
from chainrule.monitoring.monitor import Batch, Monitor, Watched
from chainrule.monitoring.reference import Said
from chainrule.monitoring.settings import read_settings
from chainrule.monitoring.store import open_store
from chainrule.testing.streams import alarms_of, stream

LENGTHS = 30.0  # the mean length of made-up rows


def false_alarms(promised: int, runs: int, windows: int) -> None:
    """One label with nothing changing, from its second window on."""
    print(f"\n| rate | alarms | windows | alarms in {promised} windows (95 %) |\n|---|---|---|---|")
    for rate in (0.1, 1.0, 5.0, 50.0):
        found = sum(len(alarms_of(stream(windows, rate, seed=seed), 1 / promised)) for seed in range(runs))
        told(f"Poisson, {rate:g}", found, runs * windows, promised)
    for rate, size in ((5.0, 20.0), (5.0, 5.0), (50.0, 20.0)):
        found = sum(len(alarms_of(stream(windows, rate, seed=seed, size=size), 1 / promised)) for seed in range(runs))
        told(f"{rate:g}, variance {1 + rate / size:g} times that of Poisson", found, runs * windows, promised)
    found = sum(len(alarms_of(daily(windows, seed), 1 / promised, period=24)) for seed in range(runs))
    told("5, a daily cycle of 1 to 9, with `--cycle 1d`", found, runs * windows, promised)
    for name, counts in (("5, a daily cycle of 1 to 9", daily), ("5, bursts of five hours", bursts)):
        found = sum(len(alarms_of(counts(windows, seed), 1 / promised)) for seed in range(runs))
        told(name, found, runs * windows, promised)


def daily(windows: int, seed: int) -> np.ndarray:
    """Counts that rise and fall with the hour of the day."""
    rates = 5 + 4 * np.sin(np.arange(windows) * 2 * np.pi / 24)
    return np.random.default_rng(seed).poisson(rates)


def bursts(windows: int, seed: int) -> np.ndarray:
    """Counts whose rate is another one every five hours."""
    generator = np.random.default_rng(seed)
    return generator.poisson(np.repeat(generator.gamma(10, 0.5, windows // 5 + 1), 5)[:windows])


def told(name: str, alarms: int, windows: int, promised: int) -> None:
    low = chi2.ppf(0.025, 2 * alarms) / 2 if alarms else 0.0
    high = chi2.ppf(0.975, 2 * alarms + 2) / 2
    each = promised / windows
    print(f"| {name} | {alarms} | {windows:,} | {alarms * each:.2f} ({low * each:.2f} to {high * each:.2f}) |")


def delays(promised: int, runs: int, known: int) -> None:
    """A rate that is multiplied from one window on; how many windows until it is told."""
    print(f"\n| rate | times | windows until the alarm: median (mean) | within {LATEST} windows |\n|---|---|---|---|")
    for rate in (1.0, 5.0, 50.0):
        for factor in (1.2, 1.5, 2.0, 3.0, 5.0):
            found = []
            for seed in range(runs):
                counts = stream(known + LATEST, rate, change=known, factor=factor, seed=seed)
                after = [number - known + 1 for number in alarms_of(counts, 1 / promised) if number >= known]
                found.append(after[0] if after else None)
            seen = [delay for delay in found if delay is not None]
            many = f"{np.median([LATEST + 1 if d is None else d for d in found]):g}".replace(f"{LATEST + 1}", "none")
            average = f"{mean(seen):.1f}" if seen else "none"
            print(f"| {rate:g} | {factor:g} | {many} ({average}) | {100 * len(seen) / runs:.0f} % |")


LATEST = 48


def drifts(trials: int) -> None:
    """Comparisons with a reference: the share of alarms while nothing changes, and when something does."""
    generator, alarm = np.random.default_rng(0), 0.01
    print("\n| comparison | rows | alarms at 1 % promised | after the change | the change |\n|---|---|---|---|---|")
    shares = np.array([0.7, 0.2, 0.07, 0.02, 0.01])
    moved = np.array([0.6, 0.28, 0.09, 0.02, 0.01])
    for rows in (200, 1000):
        hits = np.zeros((trials, 2), bool)
        for trial in range(trials):
            before = generator.multinomial(1000, shares).tolist()
            for place, now in enumerate((shares, moved)):
                drift = count_drift("label", before, generator.multinomial(rows, now).tolist(), alarm)
                hits[trial, place] = drift is not None and drift.probability < alarm
        print(
            f"| labels | {rows} | {percent(hits[:, 0])} | {percent(hits[:, 1])} | one in ten rows has another label |"
        )
    for rows in (200, 1000):
        mixing, hits = generator.standard_normal((16, 16)), np.zeros((trials, 2), bool)
        for trial in range(trials):
            usual, late = (generator.standard_t(5, (n, 16)) @ mixing for n in (1000, rows))
            before_rows = (usual.mean(axis=0), np.cov(usual, rowvar=False), 1000)
            for place, shift in enumerate((0.0, 0.5)):
                mean_now = late.mean(axis=0) + shift * np.sqrt(5 / 3) * mixing[0]
                drift = vector_drift(before_rows, (mean_now, rows), alarm)
                hits[trial, place] = drift is not None and drift.probability < alarm
        print(f"| vectors | {rows} | {percent(hits[:, 0])} | {percent(hits[:, 1])} | the mean by half a deviation |")


def percent(hits: np.ndarray) -> str:
    return f"{100 * hits.mean():.1f} %"


def whole(monitors: int, hours: int) -> None:
    """Monitors with their files: two labels, lengths and scores; a false alarm is promised in ten days."""
    alarms: dict[str, int] = {}
    first: list[int] = []
    for seed in range(monitors):
        generator = np.random.default_rng(seed)
        with tempfile.TemporaryDirectory() as folder:
            settings = read_settings({"window": "1h", "false_alarms": "10d"})
            monitor = Monitor(open_store(Path(folder) / "w.db"), settings, {"m": Watched("class", ("a", "b"))})
            for hour in range(hours + LATEST):
                start = 3600.0 * (500_000 + hour)
                counts = generator.poisson((3.0, 17.0 if hour < hours else 34.0))
                found = monitor.tick(start)
                if counts.sum():
                    found += monitor.record(made(generator, counts.tolist(), start + 1800))
                for alarm in found:
                    if hour <= hours:
                        alarms[alarm.kind] = alarms.get(alarm.kind, 0) + 1
                    elif alarm.name == "b" and alarm.kind == "surge" and len(first) == seed:
                        first.append(hour - hours)
            if len(first) == seed:
                first.append(LATEST + 1)
            monitor.store.close()
    total = sum(alarms.values())
    print(f"\n{monitors} monitors of {hours} quiet hours, one false alarm promised in 240: {alarms}")
    told("in 240 hours", total, monitors * hours, 240)
    print(f"hours until a label that doubles is told: median {np.median(first):g}, longest {max(first)}")


def made(generator: np.random.Generator, counts: list[int], time: float) -> Batch:
    """An hour's rows."""
    labels = [("a",)] * counts[0] + [("b",)] * counts[1]
    lengths = generator.poisson(LENGTHS, len(labels))
    said = Said(labels, generator.beta(8, 2, len(labels)))
    ids = [f"{time}-{place}" for place in range(len(labels))]
    return Batch("m", ids, said, Features(lengths, np.zeros(len(labels))), time=time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promised", type=int, default=720, help="windows in which one false alarm is promised")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--known", type=int, default=336, help="windows before the change")
    parser.add_argument("--monitors", type=int, default=20)
    given = parser.parse_args()
    false_alarms(given.promised, given.runs, given.windows)
    delays(given.promised, given.runs, given.known)
    drifts(4 * given.runs)
    whole(given.monitors, 480)


if __name__ == "__main__":
    main()
