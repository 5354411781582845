"""Scores of replies weigh every token alike."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.core.task import Predictions
from chainrule.evaluation.compare import judge
from chainrule.metrics import tokens
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit


def predictions(losses: list[float], right: list[int]) -> Predictions:
    found = np.array(losses)
    return Predictions(np.array(right), np.exp(-found), found)


def test_long_replies_weigh_more() -> None:
    found = tokens.measure(np.array([1, 3]), predictions([4.0, 2.0], [1, 1]))
    assert found["loss"] == pytest.approx((4.0 + 3 * 2.0) / 4)
    assert found["perplexity"] == pytest.approx(np.exp(2.5))
    assert found["token_accuracy"] == pytest.approx(0.5)


def test_a_hopeless_model_has_a_finite_perplexity() -> None:
    assert np.isfinite(tokens.measure(np.array([1]), predictions([5000.0], [0]))["perplexity"])


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="0 targets"):
        tokens.measure(np.zeros(0), predictions([], []))


def test_verdict_against_the_untuned_model() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 60, 80)
    base = generator.gamma(8.0, 0.3, 80)
    better = base - 0.2 + generator.normal(0, 0.05, 80)
    right = (sizes // 2).tolist()
    task = find_task("text-generation")
    metrics, baselines, verdict, _ = judge(
        task,
        sizes,
        predictions(better.tolist(), right),
        {"untuned": predictions(base.tolist(), right)},
        chosen="untuned",
        labels=(),
        replicates=400,
    )
    expected = float((sizes * (base - better)).sum() / sizes.sum())
    assert verdict.better
    assert verdict.difference == pytest.approx(expected)
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < expected < verdict.high
    assert verdict.text.startswith("Better than the untuned model by ")
    for estimate in (*metrics.values(), *baselines["untuned"].values()):
        assert estimate.low <= estimate.value <= estimate.high
    assert np.log(metrics["perplexity"].low) == pytest.approx(metrics["loss"].low, rel=1e-6)
