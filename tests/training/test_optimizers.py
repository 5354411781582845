"""Every optimizer against its formula, with the gradients that our kernels make, and across a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chainrule.core.recipe import Optimizer
from chainrule.errors import RecipeError
from chainrule.kernels.embedding import embedding
from chainrule.training.checkpoint import Keeper, Standing
from chainrule.training.loop import Progress
from chainrule.training.optimizers import OPTIMIZERS, learning_rate, make_optimizer

pytestmark = pytest.mark.unit
RATE, DECAY, STEPS = 0.05, 0.1, 6
Array = np.ndarray


def start() -> Array:
    return np.random.default_rng(0).normal(size=(4, 3))


def gradients() -> list[Array]:
    return [np.random.default_rng(10 + step).normal(size=(4, 3)) for step in range(STEPS)]


# Each takes the weights, the gradients in turn and the decay, and gives the weights after the last step.


def sgd(w: Array, gs: list[Array], decay: float, *, nesterov: bool = False) -> Array:
    buffer = None
    for raw in gs:
        g = raw + decay * w
        buffer = g if buffer is None else 0.9 * buffer + g
        w = w - RATE * (g + 0.9 * buffer if nesterov else buffer)
    return w


def adam(w: Array, gs: list[Array], decay: float, *, decoupled: bool = False) -> Array:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, raw in enumerate(gs, start=1):
        g = raw if decoupled else raw + decay * w
        w = w - RATE * decay * w if decoupled else w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def adamw(w: Array, gs: list[Array], decay: float) -> Array:
    return adam(w, gs, decay, decoupled=True)


def rmsprop(w: Array, gs: list[Array], decay: float) -> Array:
    v = np.zeros_like(w)
    for raw in gs:
        g = raw + decay * w
        v = 0.99 * v + 0.01 * g**2
        w = w - RATE * g / (np.sqrt(v) + 1e-8)
    return w


def adafactor(w: Array, gs: list[Array], decay: float) -> Array:
    """Algorithm 4 with the relative step sizes of section 8, and the means instead of the sums of algorithm 4."""
    rows, columns = np.zeros((4, 1)), np.zeros((1, 3))
    for t, g in enumerate(gs, start=1):
        beta = 1 - t**-0.8
        size = max(1e-3, float(np.sqrt(np.mean(w**2)))) * min(RATE, t**-0.5)
        w = w - RATE * decay * w
        rows = beta * rows + (1 - beta) * np.mean(g**2, axis=1, keepdims=True)
        columns = beta * columns + (1 - beta) * np.mean(g**2, axis=0, keepdims=True)
        update = g / np.sqrt(rows * columns / rows.mean())
        w = w - size * update / max(1.0, float(np.sqrt(np.mean(update**2))))
    return w


def lion(w: Array, gs: list[Array], decay: float) -> Array:
    m = np.zeros_like(w)
    for g in gs:
        w = w - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * w)
        m = 0.99 * m + 0.01 * g
    return w


FORMULAS: dict[str, Callable[..., Array]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "adafactor": adafactor,
    "lion": lion,
}


def made(name: str, parameters: Sequence[torch.Tensor], decay: float = DECAY, **options: Any) -> Any:
    groups = [{"params": list(parameters), "lr": RATE, "weight_decay": decay}]
    return make_optimizer(Optimizer(name=name, options=options), groups)


def after(name: str, decay: float, **options: Any) -> Array:
    """Float64, and gradients that are four times too large beside a factor of a quarter."""
    parameter = nn.Parameter(torch.from_numpy(start()))
    optimizer = made(name, [parameter], decay, **options)
    for gradient in gradients():
        parameter.grad = torch.from_numpy(4 * gradient)
        optimizer.gradient_scale = 0.25
        optimizer.step()
        assert optimizer.gradient_scale == 1.0
        optimizer.zero_grad()
        assert parameter.grad is None
    return parameter.detach().numpy()


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_its_formula(name: str, decay: float) -> None:
    assert np.allclose(after(name, decay), FORMULAS[name](start(), gradients(), decay), atol=1e-9)


def test_nesterovs_momentum_looks_ahead() -> None:
    assert np.allclose(after("sgd", DECAY, nesterov=True), sgd(start(), gradients(), DECAY, nesterov=True), atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_decoupled_where_it_says_so(name: str) -> None:
    """With gradients of 0, a decoupled decay multiplies the weights by 1 − rate · decay in each step; L2 does not."""
    parameter = nn.Parameter(torch.from_numpy(start()))
    optimizer = made(name, [parameter])
    for _ in range(2):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    decoupled = np.allclose(parameter.detach().numpy(), (1 - RATE * DECAY) ** 2 * start())
    assert OPTIMIZERS[name].summary.count("decoupled weight decay" if decoupled else "weight decay is L2") == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_some_rows_and_in_bfloat16_are_read(name: str) -> None:
    torch.manual_seed(0)
    table, weight = nn.Parameter(torch.randn(9, 3)), nn.Parameter(torch.randn(3, 3))
    plain = [nn.Parameter(part.detach().clone()) for part in (table, weight)]
    ours, theirs = made(name, [table, weight], decay=0.0), made(name, plain, decay=0.0)
    weight.grad_dtype = None
    ids = torch.tensor([1, 7, 1])
    for _ in range(2):
        for part, own in ((table, True), (plain[0], False)):
            rows = embedding(part, ids, None) if own else torch.nn.functional.embedding(ids, part)
            (rows**2).sum().backward()  # type: ignore[no-untyped-call]
        weight.grad = torch.randn(3, 3).bfloat16()
        plain[1].grad = weight.grad.float()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    late = getattr(table, "catch_up", None)
    if late is not None:
        late(None)
    assert torch.allclose(table, plain[0], atol=1e-6)
    assert torch.allclose(weight, plain[1], atol=1e-6)


def learn(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_after_a_stop_to_the_bit(name: str, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, made(name, list(model.parameters()))

    whole, optimizer = fresh()
    learn(whole, optimizer, 0, 6)
    stopped, optimizer = fresh()
    learn(stopped, optimizer, 0, 3)
    (tmp_path / "events.jsonl").touch()
    keeper = Keeper(tmp_path, 5, 1)
    keeper.write(stopped, ("weight", "bias"), Standing(Progress(3, optimizer)))
    again, optimizer = fresh()
    found = keeper.newest(print)
    assert found is not None
    found.put_into(again, Standing(Progress(0, optimizer)))
    learn(again, optimizer, 3, 6)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again.parameters(), whole.parameters(), strict=True))


def test_the_usual_rate_suits_the_rule_unless_one_is_given() -> None:
    assert learning_rate(Optimizer(), 5e-5) == 5e-5
    assert learning_rate(Optimizer(name="lion"), 5e-5) == 5e-5 * OPTIMIZERS["lion"].rate
    assert learning_rate(Optimizer(name="lion", learning_rate=1e-3), 5e-5) == 1e-3


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        (
            "adamax",
            {},
            "field 'optimizer.name': expected one of adamw, adam, sgd, rmsprop, adafactor, lion, got 'adamax'. "
            "Choose one of the names; `chainrule show optimizers` describes them.",
        ),
        (
            "lion",
            {"beta": 1},
            "field 'optimizer.options.beta': expected one of the keys betas, got the unknown key 'beta'. "
            "Correct the spelling or remove it.",
        ),
        (
            "adam",
            {"betas": [0.9, 1.0]},
            "field 'optimizer.options.betas.1': expected less than 1, got 1.0. Change 'optimizer.options.betas.1'.",
        ),
        (
            "sgd",
            {"nesterov": True, "momentum": 0.0},
            "field 'optimizer.options': expected a momentum above 0 where nesterov is true, "
            "got {'nesterov': True, 'momentum': 0.0}. Change 'optimizer.options'.",
        ),
    ],
)
def test_what_there_is_not_is_refused(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_optimizer(Optimizer(name=name, options=options), [])
    assert [str(item) for item in caught.value.problems] == [problem]
