from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.evaluation.charts import (
    Axis,
    Interval,
    Line,
    bar,
    heat_map,
    interval_chart,
    line_chart,
    scatter,
    smooth,
    thin,
    ticks,
)
from chainrule.evaluation.languages import Words, both
from chainrule.evaluation.quantities import (
    difference_text,
    duration,
    memory,
    metric_text,
    p_text,
    quantity,
    tick_text,
)

pytestmark = pytest.mark.unit
NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)
ABOUT = Words("about", "关于")


@given(NUMBERS, st.floats(1e-6, 1e9))
def test_ticks_are_round_inside_and_few(low: float, width: float) -> None:
    high = low + width
    marks = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1.0)
    assert len(marks) <= 9
    assert all(low - slack <= mark <= high + slack for mark in marks)


def test_ticks_of_common_ranges() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 3) == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert ticks(5, 5) == [5]


@given(st.lists(NUMBERS, min_size=1, max_size=3_000))
def test_thinning_keeps_the_extremes_and_the_limit(y: list[float]) -> None:
    x = [float(i) for i in range(len(y))]
    thin_x, thin_y = thin(x, y, 100)
    assert len(thin_x) == len(thin_y) <= max(100, 0)
    assert thin_x == sorted(thin_x)
    assert (min(thin_y), max(thin_y)) == (min(y), max(y))


def test_the_running_mean_leaves_a_level_line_and_calms_a_noisy_one() -> None:
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    noisy = np.random.default_rng(0).normal(size=1_000)
    assert np.std(smooth([float(v) for v in noisy])) < 0.3
    assert len(smooth([1.0])) == 1


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 1e12]])
def test_charts_of_awkward_numbers_have_finite_coordinates(values: list[float]) -> None:
    x = [float(i) for i in range(len(values))]
    drawings = [
        line_chart([Line(x, values, "smooth")], about=ABOUT, axis=Axis(both("x"), (0.0, max(x) or 1.0))),
        interval_chart([Interval(both("a"), v, v, v, "") for v in values], about=ABOUT, x_name=both("x")),
        scatter(values, values, about=ABOUT, names=(both("t"), both("p"))),
    ]
    for drawing in drawings:
        assert drawing.startswith("<svg")
        assert "nan" not in drawing
        assert "inf" not in drawing


def test_nothing_to_draw_is_an_empty_drawing() -> None:
    assert line_chart([], about=ABOUT, axis=Axis(both("x"), (0, 1))) == ""
    assert heat_map([], [], about=ABOUT, names=(both("t"), both("p"))) == ""
    assert scatter([], [], about=ABOUT, names=(both("t"), both("p"))) == ""


def test_a_heat_map_of_empty_classes_and_long_labels() -> None:
    drawing = heat_map([[0, 0], [3, 1]], ["<a>" * 20, "国际时事新闻" * 9], about=ABOUT, names=(both("t"), both("p")))
    assert "<a>" not in drawing
    assert drawing.count('class="cell"') == 2
    assert "…" in drawing


def test_bars_stay_in_their_track() -> None:
    assert 'width="120.0"' in bar(7.0)
    assert 'width="0.0"' in bar(-1.0)


def test_numbers_for_people() -> None:
    assert metric_text("accuracy", 0.9123) == "91.2\u202f%"
    assert metric_text("pearson", -0.5) == "\u22120.500"
    assert metric_text("accuracy", float("nan")) == metric_text("accuracy", None) == "–"
    assert difference_text("accuracy", 0.041, signed=True) == "+4.1"
    assert difference_text("accuracy", -0.0001) == "0.0"
    assert difference_text("rmse", 0.1234) == "0.123"
    assert p_text(1e-9) == "p < 0.001"
    assert p_text(0.034) == "p = 0.034"
    assert quantity(22_713_987) == Words("22.7 million", "2271 万")
    assert quantity(774) == both("774")
    assert duration(84.2) == Words("1 min 24 s", "1 分 24 秒")
    assert duration(3_700).en == "1 h 1 min"
    assert memory(1_412.5) == "1.4\u202fGB"
    assert tick_text(0.0, 2e-5) == "0"
    assert tick_text(4e-5, 2e-5) == "4e\u22125"
    assert tick_text(0.5, 0.5) == "0.5"
