from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from chainrule.evaluation import significance

pytestmark = pytest.mark.unit


def test_cells_and_rows_draw_the_same_distribution() -> None:
    counts = np.array([60, 30, 10])
    cells = significance.bootstrap(lambda weights: weights / 100, counts, replicates=4_000)
    one_each = np.repeat(np.eye(3), counts, axis=0)
    rows = significance.bootstrap(
        lambda weights: weights @ one_each / 100, np.ones(100, dtype=np.int64), replicates=4_000
    )
    assert cells.mean(axis=0) == pytest.approx(rows.mean(axis=0), abs=0.004)
    assert np.cov(cells.T) == pytest.approx(np.cov(rows.T), abs=2e-4)
    assert np.all(cells.sum(axis=1) == pytest.approx(1.0))


def test_the_same_seed_gives_the_same_resamples() -> None:
    counts = np.ones(20, dtype=np.int64)
    one, two, other = (significance.bootstrap(lambda w: w, counts, replicates=10, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(size=25)
    counts = np.ones(25, dtype=np.int64)
    found = significance.bootstrap(lambda weights: (weights @ values / 25)[:, None], counts, replicates=20_000)[:, 0]
    low, high = significance.interval(found, 25)
    expected = stats.t.interval(0.95, 24, loc=values.mean(), scale=values.std(ddof=1) / 5)
    assert (low, high) == pytest.approx(expected, abs=0.06)


def test_jackknife_acceleration_of_a_mean_is_its_closed_form() -> None:
    values = np.random.default_rng(1).exponential(size=(200, 1))
    counts = np.ones(200, dtype=np.int64)
    found = significance.acceleration(lambda weights: weights @ values / weights.sum(axis=1, keepdims=True), counts)
    assert found == pytest.approx(significance.mean_acceleration(values))
    assert found[0] > 0


def test_cells_and_rows_have_the_same_acceleration() -> None:
    cells, counts = np.array([[0.0], [1.0], [5.0]]), np.array([5, 3, 2])

    def mean_of(values: np.ndarray) -> significance.Weighted:
        return lambda weights: weights @ values / weights.sum(axis=1, keepdims=True)

    rows = np.repeat(cells, counts, axis=0)
    ones = np.ones(10, dtype=np.int64)
    assert significance.acceleration(mean_of(cells), counts) == pytest.approx(
        significance.acceleration(mean_of(rows), ones)
    )


def test_a_share_of_all_rows_still_has_an_interval() -> None:
    low, high = significance.proportion_interval(50, 50)
    assert 0.9 < low < 0.95
    assert high == 1.0


def test_mcnemar_is_the_binomial_test_of_rows_that_differ() -> None:
    first = np.array([True] * 8 + [False] * 2 + [True] * 90)
    second = np.array([False] * 8 + [True] * 2 + [True] * 90)
    assert significance.mcnemar(first, second) == pytest.approx(stats.binomtest(8, 10).pvalue)
    assert significance.mcnemar(first, first) == 1.0


def test_randomization_agrees_with_mcnemar() -> None:
    counts = np.array([80, 15, 5])  # both right or wrong, only the first right, only the second right
    gain = np.array([0.0, 1.0, -1.0])

    def difference(swapped: np.ndarray) -> np.ndarray:
        return np.asarray((counts - 2 * swapped) @ gain / 100)

    found = significance.randomization(difference, counts, 0.1, replicates=20_000)
    assert found == pytest.approx(stats.binomtest(15, 20).pvalue, abs=0.006)


@pytest.mark.parametrize("seed", range(40))
def test_interval_and_p_value_never_disagree(seed: int) -> None:
    generator = np.random.default_rng(seed)
    replicates = generator.normal(generator.uniform(0, 3), 1, 500)
    for randomization_p in (0.001, 0.049, 0.05, 0.5):
        found = significance.compare(float(replicates.mean()), replicates, 100, randomization_p)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        assert found.low <= found.difference <= found.high
