"""The learning-rate range test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule
from chainrule.errors import OutputError, RecipeError, StoppedError
from chainrule.evaluation.rate_page import render_rates
from chainrule.system.progress import Bar, Quiet
from chainrule.training.range_test import FEWEST, Range, read_curve, running_mean, smoothed

pytestmark = pytest.mark.unit
SETTINGS = {"training.threads": 1, "training.precision": "float32"}


def test_rates_grow_by_the_same_factor() -> None:
    rates = Range(1e-6, 1e-2, 50).rates()
    assert (rates[0], rates[-1]) == pytest.approx((1e-6, 1e-2))
    assert rates[1:] / rates[:-1] == pytest.approx(np.full(49, rates[1] / rates[0]))


@pytest.mark.parametrize(
    ("low", "high", "steps", "got"),
    [
        (1.0, 1e-3, 100, ["from 1 to 0.001"]),
        (0.0, 1.0, 100, ["from 0 to 1"]),
        (1e-7, float("inf"), 100, ["from 1e-07 to inf"]),
        (1e-7, 1.0, 3, ["3"]),
        (-1.0, 1.0, 3, ["from -1 to 1", "3"]),
    ],
)
def test_what_is_no_range_is_refused(low: float, high: float, steps: int, got: list[str]) -> None:
    with pytest.raises(RecipeError, match="These learning rates cannot be tried") as caught:
        Range(low, high, steps)
    assert [problem.got for problem in caught.value.problems] == got


def test_the_lowest_point_and_the_steepest_slope_of_a_known_curve() -> None:
    """A loss that falls as a logistic function of log10(rate) around −3.5 and explodes above −2."""
    rates = Range(1e-7, 1.0, 140).rates()
    powers = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-4 * (powers + 3.5))) + np.exp(5 * (powers + 2))
    noisy = losses + np.random.default_rng(0).normal(0, 0.03, len(losses))
    steepest, lowest = read_curve(rates, smoothed(rates, noisy.tolist()))
    assert steepest is not None
    assert lowest is not None
    assert np.log10(steepest) == pytest.approx(-3.5, abs=0.2)
    assert np.log10(lowest) == pytest.approx(powers[losses.argmin()], abs=0.2)


def test_a_curve_that_never_falls_suggests_nothing() -> None:
    rates = Range(1e-7, 1.0, 50).rates()
    assert read_curve(rates, np.linspace(1.0, 2.0, 50)) == (None, None)
    assert read_curve(rates, np.ones(50)) == (None, None)
    few = FEWEST - 1
    assert read_curve(rates[:few], np.linspace(2.0, 1.0, few)) == (None, None)


def test_means() -> None:
    rates = Range(1e-7, 1.0, 50).rates()
    assert smoothed(rates, [2.0] * 50) == pytest.approx(np.full(50, 2.0))
    assert running_mean([3.0]) == 3.0
    assert running_mean([0.0, 1.0]) == pytest.approx(1 / 1.9)


def test_a_tiny_model_gives_a_sane_curve_and_a_page(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    page = tmp_path / "rates.html"
    report = chainrule.find_learning_rate(
        str(reviews), model=str(tiny_bert), out=page, tried=(1e-6, 10.0, 70), settings=SETTINGS
    )
    rates, smooth = report.learning_rates, report.smoothed
    assert len(rates) == len(report.losses) == len(smooth) <= 70
    assert report.suggestion is not None
    assert report.lowest is not None
    assert report.suggestion == pytest.approx(report.lowest / 10, rel=0.05)
    assert 1e-5 < report.suggestion < 0.1
    assert rates[0] <= report.steepest <= report.lowest  # type: ignore[operator]
    assert min(smooth) == smooth[rates.index(report.lowest)] < smooth[0]
    assert report.stopped == "the loss had become 4 times its lowest"
    text = page.read_text(encoding="utf-8")
    assert f"--set optimizer.learning_rate={report.suggestion:.1e}" in text
    assert "损失随学习率的变化" in text
    assert not {path.name for path in tmp_path.iterdir()} - {"rates.html"}, "nothing else is left behind"


@pytest.mark.parametrize("strategy", ["head", "lora"])
def test_it_works_for_every_strategy(strategy: str, tiny_bert: Path, reviews: Path) -> None:
    report = chainrule.find_learning_rate(
        str(reviews), model=str(tiny_bert), strategy=strategy, tried=(1e-5, 1.0, FEWEST), settings=SETTINGS
    )
    assert report.strategy == strategy
    assert len(report.losses) > 5


def test_a_page_of_a_curve_without_a_suggestion(tiny_bert: Path, reviews: Path) -> None:
    report = chainrule.find_learning_rate(
        str(reviews), model=str(tiny_bert), tried=(1e-12, 1e-11, FEWEST), settings=SETTINGS
    )
    nothing = report.model_copy(update={"suggestion": None, "lowest": None, "steepest": None})
    page = render_rates(nothing)
    assert "The loss never fell." in page
    assert "optimizer.learning_rate" not in page


def test_a_page_is_never_overwritten(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "rates.html").touch()
    with pytest.raises(OutputError, match="exists already"):
        chainrule.find_learning_rate(str(reviews), model=str(tiny_bert), out=tmp_path / "rates.html")


def test_ctrl_c_ends_it_after_the_step(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    class Pressed(Quiet):
        @contextmanager
        def bar(self, title: str, total: int) -> Iterator[Bar]:
            class Pressing:
                def advance(self, amount: int, note: str = "") -> None:
                    signal.raise_signal(signal.SIGINT)

            yield Pressing()

    before: Any = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(StoppedError, match=r"Stopped by Ctrl-C after step 1\.") as caught:
            chainrule.find_learning_rate(
                str(reviews), model=str(tiny_bert), out=tmp_path / "x.html", settings=SETTINGS, display=Pressed()
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == 130
    assert caught.value.problems[0].got == "1; nothing is kept"
    assert not (tmp_path / "x.html").exists()
