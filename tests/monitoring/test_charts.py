"""The false-alarm rate of the charts is the one that is stated, and surges are seen soon."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact, kstest, norm, poisson

from chainrule.monitoring.charts import Count, draw_of, limit_for, run_length
from chainrule.monitoring.drift import count_drift, vector_drift
from chainrule.testing.streams import HOUR, ROWS, alarms_of, stream

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("limit", "windows"), [(4.0, 335.4), (5.0, 930.9), (3.0, 117.6)])
def test_run_lengths_are_those_of_the_textbook(limit: float, windows: float) -> None:
    """Lucas and Crosier (1982): two-sided 168 and 465 for 4 and 5, half of what one side has; 3 from Siegmund."""
    assert run_length(limit) == pytest.approx(windows, rel=0.005)


def test_run_length_is_what_a_simulation_shows() -> None:
    generator = np.random.default_rng(0)
    sums, lengths = np.zeros(4000), np.zeros(4000)
    running = np.ones(4000, bool)
    while running.any():
        sums = np.maximum(0.0, sums + generator.standard_normal(4000) - 0.5)
        lengths[running] += 1
        running &= sums <= 2.0
    assert run_length(2.0) == pytest.approx(lengths.mean(), rel=0.06)


@pytest.mark.parametrize("windows", [10.0, 500.0, 2e5])
def test_limits_give_the_run_length_that_is_asked(windows: float) -> None:
    assert run_length(limit_for(windows)) == pytest.approx(windows, rel=0.01)


@given(st.integers(0, 40), st.integers(0, 400), st.floats(0.1, 10), st.floats(0.1, 500))
def test_over_time_it_is_the_binomial_test(seen: int, before: int, exposure: float, earlier: float) -> None:
    found = Count(seen, exposure, before, earlier).surprise()
    if seen + before:
        share = exposure / (exposure + earlier)
        assert found == pytest.approx(binomtest(seen, seen + before, share, alternative="greater").pvalue, abs=1e-12)
    else:
        assert found == 1.0


@given(st.integers(0, 50), st.integers(0, 400))
def test_among_rows_it_is_fishers_test(seen: int, before: int) -> None:
    found = Count(seen, 50, before, 400, of_rows=True).surprise()
    table = [[seen, 50 - seen], [before, 400 - before]]
    assert found == pytest.approx(fisher_exact(table, alternative="greater").pvalue, abs=1e-12)


@pytest.mark.parametrize("rate", [0.2, 3.0, 60.0])
def test_scores_are_normal_and_independent_whatever_the_rate(rate: float) -> None:
    """As Quesenberry's Q charts: no rate is known beforehand, from the second window on."""
    scores = []
    for run in range(300):
        counts = np.random.default_rng(run).poisson(rate, 12)
        scores.append([Count(int(counts[n]), 1, int(counts[:n].sum()), n).score(draw_of(run, n)) for n in range(1, 12)])
    table = np.array(scores)
    assert kstest(table.ravel(), norm.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.06


def test_false_alarms_are_as_rare_as_stated() -> None:
    """One in 40 windows is asked for, so that a test of seconds sees many; the bound is the 99.9 % one of Poisson."""
    share, windows = 1 / 40, 150
    for rate, span in ((0.5, HOUR), (8.0, HOUR), (8.0, ROWS)):
        alarms = sum(len(alarms_of(stream(windows, rate, seed=run), share, span)) for run in range(12))
        assert alarms <= poisson.isf(1e-3, 12 * windows * share)


def test_a_cycle_that_is_named_gives_no_more_false_alarms() -> None:
    share, windows = 1 / 40, 400
    rates = 6 + 5 * np.sin(np.arange(windows) * 2 * np.pi / 12)
    streams = [np.random.default_rng(run).poisson(rates) for run in range(6)]
    with_it, without = (sum(len(alarms_of(s, share, period=period)) for s in streams) for period in (12, 1))
    assert with_it <= poisson.isf(1e-3, 6 * windows * share)
    assert without > 2 * with_it
    surge = np.concatenate([streams[0][:396], [22]])  # at a point of the cycle where six are usual, and eleven later
    assert 396 in alarms_of(surge, 1 / 400, period=12)


@pytest.mark.parametrize(("factor", "most"), [(4.0, 1.5), (1.5, 25.0)])
def test_surges_are_seen(factor: float, most: float) -> None:
    """At one false alarm in 1,000 windows, of a rate of 5 known from 150 windows."""
    delays = []
    for run in range(12):
        alarms = alarms_of(stream(250, 5.0, change=150, factor=factor, seed=run), 1 / 1000)
        after = [number for number in alarms if number >= 150]
        delays.append(after[0] - 149 if after else 101)
    assert np.mean(delays) <= most


def test_a_surge_is_one_alarm_and_what_lasts_becomes_usual() -> None:
    runs = [np.concatenate([stream(200, 5.0, seed=run), stream(150, 30.0, seed=100 + run)]) for run in range(8)]
    alarms = [alarms_of(counts, 1 / 1000) for counts in runs]
    assert all(200 in found for found in alarms)
    false = sum(number != 200 for found in alarms for number in found)
    assert false <= poisson.isf(1e-3, 8 * 350 / 1000)


def test_counts_of_the_same_rows_drift_as_rarely_as_stated() -> None:
    generator, alarm, trials = np.random.default_rng(1), 0.01, 600
    shares = np.array([0.6, 0.3, 0.08, 0.019, 0.001])
    found = [
        count_drift(
            "label", generator.multinomial(1500, shares).tolist(), generator.multinomial(300, shares).tolist(), alarm
        )
        for _ in range(trials)
    ]
    by_chance = sum(drift is not None and drift.probability < alarm for drift in found)
    by_size = sum(drift is not None and drift.size > drift.limit for drift in found)
    for alarms in (by_chance, by_size):
        assert alarms <= poisson.isf(1e-3, trials * alarm)
    moved = count_drift("label", [900, 450, 150], [120, 150, 30], alarm, ("a", "b", "c"))
    assert moved is not None
    assert moved.probability < 1e-6
    assert moved.size > moved.limit
    assert moved.told == "b: 50.0 % of rows, 30.0 % expected"


def test_too_few_counts_are_not_compared() -> None:
    assert count_drift("label", [3, 0], [2, 1], 0.01) is None
    assert count_drift("label", [500, 0], [100, 0], 0.01) is None
    assert count_drift("label", [], [], 0.01) is None


def test_means_of_the_same_vectors_drift_as_rarely_as_stated() -> None:
    generator, alarm, trials = np.random.default_rng(2), 0.02, 400
    mixing = generator.standard_normal((16, 16))
    alarms = 0
    for _ in range(trials):
        rows, late = (generator.standard_t(6, (n, 16)) @ mixing for n in (1000, 250))
        before = (rows.mean(axis=0), np.cov(rows, rowvar=False), len(rows))
        drift = vector_drift(before, (late.mean(axis=0), len(late)), alarm)
        assert drift is not None
        assert (drift.probability < alarm) == (drift.size > drift.limit)
        alarms += drift.probability < alarm
    assert alarms <= poisson.isf(1e-3, trials * alarm * 1.25)  # asymptotic: a little more often
    shifted = vector_drift(before, (late.mean(axis=0) + 0.8 * mixing[0], 250), alarm)
    assert shifted is not None
    assert shifted.probability < 1e-6
    flat = (np.zeros(16), np.zeros((16, 16)), 1000)
    assert vector_drift(flat, (np.zeros(16), 250), alarm) is None
