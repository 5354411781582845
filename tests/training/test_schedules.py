"""Every schedule: its warm-up, its end, and the numbers of torch and transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import get_inverse_sqrt_schedule, get_polynomial_decay_schedule_with_warmup

from chainrule.core.recipe import Schedule, parse_recipe
from chainrule.errors import RecipeError
from chainrule.training.schedules import SCHEDULES, make_schedule

pytestmark = pytest.mark.unit


def values(name: str, steps: int = 100, warmup: float = 0.1, **options: Any) -> list[float]:
    factor = make_schedule(Schedule(name=name, warmup=warmup, options=options), steps)
    return [factor(step) for step in range(steps)]


def of_torch(make: Callable[[Any], Any], steps: int = 100) -> list[float]:
    """The learning rates, beginning with 1, of one of torch's or transformers' schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for step in range(steps):
        if step:
            optimizer.step()
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_warms_up_then_falls_and_never_stops_before_the_end(name: str, warmup: float) -> None:
    found, warm = values(name, warmup=warmup), round(100 * warmup)
    assert found[:warm] == sorted(found[:warm])
    assert max(found) == pytest.approx(1.0)
    assert found[warm:] == sorted(found[warm:], reverse=True)
    assert all(0 < value <= 1 for value in found)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_few_steps_are_a_whole_run(name: str, steps: int, warmup: float) -> None:
    assert all(0 < value <= 1 for value in values(name, steps, warmup))


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("linear", {}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=100)),
        ("linear", {"end": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=100)),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=100)),
        ("cosine", {"end": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=100, eta_min=0.1)),
        ("polynomial", {"power": 3.0}, lambda o: lr_scheduler.PolynomialLR(o, total_iters=100, power=3.0)),
        (
            "polynomial",
            {"end": 0.1, "power": 2.0},
            lambda o: get_polynomial_decay_schedule_with_warmup(o, 0, 100, lr_end=0.1, power=2.0),
        ),
        ("step", {"drops": 3, "factor": 0.5}, lambda o: lr_scheduler.StepLR(o, step_size=25, gamma=0.5)),
        ("exponential", {"end": 0.05}, lambda o: lr_scheduler.ExponentialLR(o, gamma=0.05**0.01)),
        ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        ("inverse-sqrt", {}, lambda o: get_inverse_sqrt_schedule(o, num_warmup_steps=0, timescale=1)),
    ],
)
def test_after_the_warm_up_it_is_torchs_or_transformers(name: str, options: dict[str, Any], make: Any) -> None:
    assert values(name, warmup=0.0, **options) == pytest.approx(of_torch(make), abs=1e-12)
    warmed = values(name, 120, warmup=1 / 6, **options)  # 20 steps, then the same 100
    if name != "inverse-sqrt":  # which goes on from where the warm-up stood
        assert warmed[20:] == pytest.approx(of_torch(make), abs=1e-12)


def test_the_inverse_root_goes_on_from_the_warm_up() -> None:
    theirs = of_torch(lambda o: get_inverse_sqrt_schedule(o, num_warmup_steps=20))
    assert values("inverse-sqrt", warmup=0.2)[20:] == pytest.approx(theirs[20:], abs=1e-12)


@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_one_cycle_is_torchs(warmup: float) -> None:
    def make(optimizer: Any) -> Any:
        options: dict[str, Any] = {"div_factor": 20.0, "final_div_factor": 100.0, "cycle_momentum": False}
        return lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=100, pct_start=warmup, **options)

    assert values("one-cycle", 100, warmup, start=0.05, end=0.01) == pytest.approx(of_torch(make), abs=1e-12)


def test_a_plateau_is_where_torch_sees_one() -> None:
    scores = [0.5, 0.6, 0.6, 0.55, 0.6, 0.5, 0.4, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=1, threshold=0.0)
    factor = make_schedule(Schedule(name="reduce-on-plateau", warmup=0.0, options={"factor": 0.5, "patience": 2}), 100)
    waits: list[int] = []
    for number, score in enumerate(scores):
        theirs.step(score)
        better = score > max(scores[:number], default=0.0)
        waits.append(0 if better else waits[-1] + 1)
        assert factor(50, waits) == optimizer.param_groups[0]["lr"]
    assert factor(50, waits) == 0.5**4


def test_warm_up_comes_before_plateaus() -> None:
    factor = make_schedule(Schedule(name="reduce-on-plateau", warmup=0.5), 10)
    assert factor(0, [0, 1, 2]) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        (
            {"name": "cosin"},
            "field 'schedule.name': expected one of linear, cosine, polynomial, constant, step, exponential, "
            "inverse-sqrt, one-cycle, reduce-on-plateau, got 'cosin'. Choose one of the names; "
            "`chainrule show schedules` describes them.",
        ),
        (
            {"name": "step", "options": {"drops": -1}},
            "field 'schedule.options.drops': expected greater than or equal to 1, got -1. "
            "Change 'schedule.options.drops'.",
        ),
        (
            {"name": "constant", "options": {"end": 0.1}},
            "field 'schedule.options.end': expected no such key, got the unknown key 'end'. "
            "Correct the spelling or remove it.",
        ),
        (
            {"name": "cosine", "options": {"power": 2}},
            "field 'schedule.options.power': expected one of the keys end, got the unknown key 'power'. "
            "Correct the spelling or remove it.",
        ),
    ],
)
def test_what_there_is_not_is_refused(schedule: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_schedule(Schedule(**schedule), 10)
    assert [str(item) for item in caught.value.problems] == [problem]


def test_negative_steps_and_warm_up_are_refused() -> None:
    recipe = {"task": "regression", "model": "minilm", "training": {"steps": -5}, "schedule": {"warmup": -0.1}}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe)
    assert [str(item) for item in caught.value.problems] == [
        "field 'schedule.warmup': expected greater than or equal to 0, got -0.1. Change 'schedule.warmup'.",
        "field 'training.steps': expected greater than or equal to 1, got -5. Change 'training.steps'.",
    ]
