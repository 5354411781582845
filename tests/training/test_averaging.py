"""Averages of weights: their formula, late rows, later phases, and what is validated and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import chainrule
from chainrule.core.recipe import Optimizer, Spec
from chainrule.errors import RecipeError
from chainrule.kernels import native
from chainrule.kernels.adamw import NativeAdamW, catch_up
from chainrule.kernels.embedding import embedding
from chainrule.training.averaging import Averaged, average_share, averages_in_place
from chainrule.training.optimizers import make_optimizer
from chainrule.training.validation import trained_weights

pytestmark = pytest.mark.unit
STEPS = 8


def averaged(parameters: list[nn.Parameter], averaging: Spec, name: str = "sgd") -> Averaged:
    groups = [{"params": parameters, "lr": 0.1, "weight_decay": 0.0}]
    return Averaged(make_optimizer(Optimizer(name=name), groups), average_share(averaging, STEPS))


def walk(averaging: Spec, name: str = "sgd") -> tuple[list[torch.Tensor], torch.Tensor]:
    """The weights after each of eight steps, and their average after the last."""
    torch.manual_seed(0)
    parameter, seen = nn.Parameter(torch.randn(3, 2, dtype=torch.float64)), []
    optimizer = averaged([parameter], averaging, name)
    for _ in range(STEPS):
        parameter.grad = 4 * torch.randn(3, 2, dtype=torch.float64)
        optimizer.gradient_scale = 0.25
        optimizer.step()
        optimizer.zero_grad()
        seen.append(parameter.detach().clone())
    return seen, optimizer.state[parameter]["average"]


@pytest.mark.parametrize("name", ["sgd", "lion", "adafactor"])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_ema_is_the_mean_with_falling_weights(decay: float, name: str) -> None:
    seen, average = walk(Spec(name="ema", options={"decay": decay}), name)
    weights = torch.tensor([decay ** (STEPS - 1 - step) for step in range(STEPS)], dtype=torch.float64)
    expected = (torch.stack(seen) * weights[:, None, None]).sum(0) / weights.sum()
    assert torch.allclose(average, expected, atol=1e-12)


@pytest.mark.parametrize(("start", "steps"), [(0.0, 8), (0.25, 6), (0.75, 2), (0.9, 1)])
def test_swa_is_the_mean_of_the_last_steps(start: float, steps: int) -> None:
    seen, average = walk(Spec(name="swa", options={"start": start}))
    assert torch.allclose(average, torch.stack(seen[-steps:]).mean(0), atol=1e-12)


def test_the_update_is_that_of_the_optimizer_alone() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    optimizer = make_optimizer(Optimizer(name="sgd"), [{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}])
    for _ in range(STEPS):
        parameter.grad = torch.randn(3, 2, dtype=torch.float64)
        optimizer.step()
    assert torch.equal(parameter, walk(Spec(name="ema"))[0][-1])


def test_a_parameter_of_a_later_phase_counts_as_if_it_had_been_so_before() -> None:
    early, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = averaged([early], Spec(name="swa", options={"start": 0.0}))
    for step in range(4):
        if step == 2:
            optimizer.param_groups.clear()
            optimizer.add_param_group({"params": [late], "lr": 0.1, "weight_decay": 0.0})
        for parameter in (early, late):
            parameter.grad = None
        (early if step < 2 else late).grad = torch.ones(1)
        optimizer.step()
    assert optimizer.state[early]["averaged"] == optimizer.state[late]["averaged"] == 4
    assert float(optimizer.state[late]["average"].detach()) == pytest.approx((3 * -0.1 - 0.29) / 4)
    assert float(optimizer.state[early]["average"]) == pytest.approx((-0.1 + 3 * -0.29) / 4)  # it stands still


@pytest.mark.skipif(not native.available(), reason="no C++ compiler, or CHAINRULE_NATIVE=0")
def test_rows_that_are_behind_catch_up_before_they_are_averaged() -> None:
    torch.manual_seed(1)
    mine = nn.Parameter(torch.randn(30, 5))
    exact = nn.Parameter(mine.detach().double())
    share = average_share(Spec(name="ema", options={"decay": 0.9}), STEPS)
    groups = [[{"params": [parameter], "lr": 0.05, "weight_decay": 0.1}] for parameter in (mine, exact)]
    ours = Averaged(NativeAdamW(groups[0], (0.9, 0.999), 1e-8), share)
    theirs = Averaged(make_optimizer(Optimizer(name="adamw"), groups[1]), share)
    for step in range(12):
        ids = torch.randint(0, 10 + step, (6,))
        catch_up(mine, ids)
        embedding(mine, ids, None).square().sum().backward()  # type: ignore[no-untyped-call]
        functional.embedding(ids, exact).square().sum().backward()  # type: ignore[no-untyped-call]
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    average = theirs.state[exact]["average"]
    assert torch.allclose(ours.state[mine]["average"].double(), average, atol=2e-6)
    weights = mine.detach().clone()
    with averages_in_place(ours):
        catch_up(mine, torch.arange(30))
        assert torch.allclose(mine.double(), average, atol=2e-6)
    assert torch.equal(mine, weights)


def test_weights_come_back_whatever_happens_meanwhile() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = averaged([parameter], Spec(name="ema"))
    for _ in range(2):
        parameter.grad = torch.ones(2)
        optimizer.step()
    weights, average = parameter.detach().clone(), optimizer.state[parameter]["average"].clone()

    def fail() -> None:
        with averages_in_place(optimizer):
            assert torch.equal(parameter, average)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert torch.equal(parameter, weights)
    assert torch.equal(optimizer.state[parameter]["average"], average)


def test_what_is_kept_is_the_average() -> None:
    model = nn.Linear(2, 1)
    optimizer = averaged(list(model.parameters()), Spec(name="ema"))
    for _ in range(3):
        model(torch.ones(4, 2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with averages_in_place(optimizer):
        kept = trained_weights(model, ("weight", "bias"))
    for name, parameter in model.named_parameters():
        assert torch.equal(kept[name], optimizer.state[parameter]["average"])
        assert not torch.equal(kept[name], parameter)


def test_a_run_keeps_its_average(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    """Of the last step alone it is the run without; of all steps it is another one, in a file and in the metrics."""
    settings: dict[str, Any] = {
        "model": str(tiny_bert),
        "optimizer.learning_rate": 5e-3,
        "training.steps": 12,
        "training.evaluate_every_steps": 12,
        "training.precision": "float32",
        "training.threads": 1,
    }
    runs = {
        name: chainrule.train(str(reviews), out=tmp_path / name, settings={**settings, "training.averaging": averaging})
        for name, averaging in (
            ("none", None),
            ("last", {"name": "swa", "options": {"start": 0.99}}),
            ("all", {"name": "swa", "options": {"start": 0.0}}),
        )
    }
    weights = {name: load_file(run.artifact.path / "model.safetensors") for name, run in runs.items()}
    assert all(torch.equal(weights["none"][key], weights["last"][key]) for key in weights["none"])
    assert not torch.equal(weights["none"]["classifier.weight"], weights["all"]["classifier.weight"])
    assert runs["none"].summary["metrics"] == runs["last"].summary["metrics"] != runs["all"].summary["metrics"]
    losses = [
        [event["loss"] for event in run.events() if event["event"] == "step"] for run in (runs["none"], runs["all"])
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("averaging", "problem"),
    [
        (
            Spec(name="polyak"),
            "field 'training.averaging.name': expected one of ema, swa, got 'polyak'. Choose one of the names; "
            "`chainrule show averages` describes them.",
        ),
        (
            Spec(name="ema", options={"decay": 1.0}),
            "field 'training.averaging.options.decay': expected less than 1, got 1.0. "
            "Change 'training.averaging.options.decay'.",
        ),
    ],
)
def test_what_there_is_not_is_refused(averaging: Spec, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        average_share(averaging, 10)
    assert [str(item) for item in caught.value.problems] == [problem]
