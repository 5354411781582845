"""Each fault that is planted in a chain of layers is named, and a sound one is left alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from chainrule.core.report import Finding
from chainrule.evaluation.diagnosis import DETECTORS, Case, diagnose
from chainrule.testing.chains import ROWS, Chain, case_of, watch_training

pytestmark = pytest.mark.unit


def found(model: Chain, strategy: str = "full", **options: Any) -> dict[str, Finding]:
    """Kind -> finding, of a watched training."""
    return {finding.kind: finding for finding in diagnose(case_of(watch_training(model, **options), strategy))}


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, nn.functional.gelu])
@pytest.mark.parametrize("depth", [2, 8, 16])
def test_a_sound_chain_is_left_alone(activation: Callable[[torch.Tensor], torch.Tensor], depth: int) -> None:
    assert found(Chain(activation, depth=depth)) == {}


def test_a_run_that_was_hardly_begun_is_left_alone() -> None:
    assert found(Chain(), steps=1) == {}
    assert diagnose(Case(case_of([]).trace)) == ()


@pytest.mark.parametrize("bias", [0.0, 5.0])
def test_a_chain_of_sigmoids_fades(bias: float) -> None:
    model = Chain(torch.sigmoid, residual=False)
    for layer in model.stack:
        nn.init.constant_(layer.linear.bias, bias)
    faults = found(model)
    assert set(faults) - {"unmoved-layers"} == {"vanishing-gradient"}
    assert "in layer 0 it is" in faults["vanishing-gradient"].message
    assert "that of layer 7" in faults["vanishing-gradient"].message


def test_a_chain_of_steep_sines_explodes() -> None:
    """Its outputs stay within 1 and its slopes do not."""
    model = Chain(torch.sin, residual=False)
    for layer in model.stack:
        nn.init.orthogonal_(layer.linear.weight, gain=8.0)
    faults = found(model)
    assert list(faults) == ["exploding-gradient"]
    assert "in layer 0 it is" in faults["exploding-gradient"].message


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
@pytest.mark.parametrize("rate", [0.3, 1000.0])
def test_a_learning_rate_far_too_high(activation: Callable[[torch.Tensor], torch.Tensor], rate: float) -> None:
    faults = found(Chain(activation), rates={"": rate})
    assert "learning-rate-too-high" in faults
    assert f"learning rates up to {rate:.1e}" in faults["learning-rate-too-high"].message
    assert "learning-rate-too-low" not in faults


def test_a_learning_rate_far_too_low() -> None:
    faults = found(Chain(), rates={"": 1e-8}, batch_size=ROWS)
    assert list(faults) == ["learning-rate-too-low"]
    assert re.search(r"; the loss fell by 0(\.0\d+)? %\.$", faults["learning-rate-too-low"].message)


def test_a_weight_that_is_no_number() -> None:
    model = Chain()
    with torch.no_grad():
        model.stack[3].linear.weight[0, 0] = float("nan")
    faults = found(model)
    assert list(faults) == ["non-finite"]
    expected = "The first number that was none is in the parameter layers.3.linear.weight (layer 3)."
    assert faults["non-finite"].message == f"Step 1 had no finite loss or gradient. {expected}"
    assert "the file of the base model" in faults["non-finite"].todo


def test_a_module_whose_output_is_no_number() -> None:
    model = Chain(torch.relu)
    model.stack[2].activation = lambda values: values / 0.0
    faults = found(model)
    assert list(faults) == ["non-finite"]
    assert "in the output of layers.2 (layer 2)" in faults["non-finite"].message
    assert "Lower the learning rate" in faults["non-finite"].todo


def test_a_branch_that_is_cut_off() -> None:
    model = Chain()
    layer = model.stack[5]
    layer.activation = lambda values: torch.tanh(values).detach()
    faults = found(model)
    assert list(faults) == ["no-gradient"]
    expected = "No gradient reaches layers.5.linear.bias, layers.5.linear.weight."
    assert faults["no-gradient"].message == expected


@pytest.mark.parametrize(("dead", "kind"), [(14, "dead-units"), (16, "no-gradient")])
def test_units_that_are_dead(dead: int, kind: str) -> None:
    model = Chain(torch.relu)
    with torch.no_grad():
        model.stack[2].linear.bias[:dead] = -100.0
    faults = found(model)
    assert list(faults) == [kind]
    assert ("88 % of the gradient is exactly zero in layer 2" if dead == 14 else "layers.2.") in faults[kind].message


def test_layers_that_stand_still_and_what_would_have_cost_less() -> None:
    slow = {f"layers.{number}.": 1e-9 for number in range(4)}
    finding = found(Chain(), rates={**slow, "": 1e-3})["unmoved-layers"]
    assert finding.message == "Moved less than 0.01 % of their length, while others moved ten times as far: layers 0–3."
    saved = f"{100 * 2 * 4 / (3 * 8):.2g} %"
    expected = (
        f"`--strategy partial --set strategy.options.top=4` would have cost {saved} less arithmetic in the layers."
    )
    assert finding.todo == expected
    other = found(Chain(), strategy="lora", rates={**slow, "": 1e-3})["unmoved-layers"]
    assert "leave them out" in other.todo
    middle = found(Chain(), rates={"layers.4.": 1e-9, "": 1e-3})["unmoved-layers"]
    assert middle.message.endswith(": layer 4.")
    assert "leave them out" in middle.todo


def test_every_detector_says_what_it_measures_and_why() -> None:
    assert len({detector.kind for detector in DETECTORS}) == len(DETECTORS)
    for detector in DETECTORS:
        assert detector.measures
        assert detector.reason
        assert detector.severity in ("error", "warning", "info")


def test_events_of_the_wrong_kind_do_no_harm() -> None:
    events = watch_training(Chain())
    wrong: list[Any] = [None, "text", 7, [1], {"a": {"b": None}}, float("nan")]
    for event in [event for event in events if event["event"] != "step"][:3]:
        for key in event:
            for value in wrong:
                broken: list[Mapping[str, Any]] = [{**each, key: value} if each is event else each for each in events]
                diagnose(case_of(broken))
