from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from chainrule.core.task import Predictions
from chainrule.metrics import regression

pytestmark = pytest.mark.unit


def said(values: object) -> Predictions:
    array = np.asarray(values, dtype=np.float64)
    return Predictions(array, np.ones(len(array)), None)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_scores_equal_scipy(decimals: int) -> None:
    generator = np.random.default_rng(0)
    targets = np.round(generator.normal(size=300), decimals)
    values = np.round(targets + generator.normal(size=300), decimals)
    found = regression.measure(targets, said(values))
    assert found["pearson"] == pytest.approx(stats.pearsonr(targets, values).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(targets, values).statistic)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((targets - values) ** 2)))


def test_weights_are_repeated_rows() -> None:
    generator = np.random.default_rng(1)
    targets = np.round(generator.normal(size=40), 1)
    values = np.round(targets + generator.normal(size=40), 1)
    weights = generator.integers(0, 4, (6, 40))
    found = regression.weighted(targets, values, weights)
    for i in range(6):
        again = np.repeat(np.arange(40), weights[i])
        expected = regression.measure(targets[again], said(values[again]))
        assert {name: scores[i] for name, scores in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_correlation_with_a_constant_is_zero(constant: float) -> None:
    found = regression.measure(np.array([1.0, 2.0, 4.0]), said([constant] * 3))
    assert found["pearson"] == 0.0
    assert found["spearman"] == 0.0


def test_large_offsets_do_not_spoil_pearson() -> None:
    generator = np.random.default_rng(2)
    targets = generator.normal(size=100)
    assert regression.measure(targets, said(targets + 1e8))["pearson"] == pytest.approx(1.0, abs=1e-6)


def test_one_row_scores_zero_correlation() -> None:
    assert regression.measure(np.array([1.0]), said([2.0])) == {"pearson": 0.0, "spearman": 0.0, "rmse": 1.0}


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        regression.measure(np.array([1.0, 2.0]), said([1.0, np.nan]))


def test_detail_is_small_and_the_same_each_time() -> None:
    generator = np.random.default_rng(3)
    targets = generator.normal(size=5000)
    detail = regression.detail(targets, said(targets + 1), ["score"])
    assert len(detail["scatter"]["targets"]) == regression.SCATTER_POINTS
    assert detail == regression.detail(targets, said(targets + 1), ["score"])
    assert detail["residuals"]["quantiles"]["0.5"] == pytest.approx(1.0)
    json.dumps(detail, allow_nan=False)
