"""The losses of rows against their formulas, and what each task offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.nn import functional

from chainrule.core.lists import Lists
from chainrule.core.recipe import Spec, parse_recipe
from chainrule.core.spans import Answers, Spans
from chainrule.core.task import Predictions
from chainrule.errors import RecipeError
from chainrule.tasks import TASKS, find_task
from chainrule.tasks.objectives import LogitsObjective, class_objective, label_objective, number_objective

pytestmark = pytest.mark.unit
MAKERS = {"class": class_objective, "label": label_objective, "number": number_objective}


def drawn(kind: str, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets in float64."""
    generator = torch.Generator().manual_seed(0)
    columns = 1 if kind == "number" else 4
    logits = 2 * torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    if kind == "class":
        return logits, torch.randint(0, 3, (rows,), generator=generator)  # the fourth class has no rows
    if kind == "label":
        return logits, torch.randint(0, 2, (rows, 4), generator=generator).double()
    return logits, 10 + 5 * torch.randn(rows, dtype=torch.float64, generator=generator)


def objective(kind: str, name: str = "default", **options: Any) -> tuple[LogitsObjective, torch.Tensor, torch.Tensor]:
    logits, targets = drawn(kind)
    return MAKERS[kind](Spec(name=name, options=options), targets.numpy()), logits, targets


def row_losses(kind: str, name: str, **options: Any) -> torch.Tensor:
    made, logits, targets = objective(kind, name, **options)
    return made.row_loss(logits, targets)


def focal(chance: torch.Tensor, gamma: float) -> torch.Tensor:
    """Equation 5 of Lin et al. without its alpha."""
    return -((1 - chance) ** gamma) * chance.log()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_of_classes(gamma: float) -> None:
    logits, targets = drawn("class")
    chance = logits.softmax(-1)[torch.arange(12), targets]
    assert torch.allclose(row_losses("class", "focal", gamma=gamma), focal(chance, gamma), atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_of_labels(gamma: float, alpha: float | None) -> None:
    logits, targets = drawn("label")
    chance = torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.ones_like(targets) if alpha is None else torch.where(targets == 1, alpha, 1 - alpha)
    expected = (weight * focal(chance, gamma)).mean(-1)
    assert torch.allclose(row_losses("label", "focal", gamma=gamma, alpha=alpha), expected, atol=1e-12)


def test_focal_without_focus_is_cross_entropy() -> None:
    for weights in ("none", "balanced"):
        focal_loss = row_losses("class", "focal", gamma=0.0, class_weights=weights)
        assert torch.allclose(focal_loss, row_losses("class", "cross-entropy", class_weights=weights), atol=1e-12)
    assert torch.allclose(row_losses("label", "focal", gamma=0.0), row_losses("label", "default"), atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_slope_where_a_row_is_wholly_right(gamma: float) -> None:
    made = class_objective(Spec(name="focal", options={"gamma": gamma}), np.array([0, 1]))
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    made.row_loss(logits, torch.tensor([0, 0])).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].tolist() == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("delta", [0.1, 1.0, 100.0])
def test_huber_is_in_standard_deviations(delta: float) -> None:
    logits, targets = drawn("number")
    error = (logits[:, 0] - targets) / targets.std(correction=0)
    expected = torch.where(error.abs() < delta, error**2 / 2, delta * (error.abs() - delta / 2))
    assert torch.allclose(row_losses("number", "huber", delta=delta), expected, atol=1e-12)
    made = number_objective(Spec(name="huber", options={"delta": delta}), 1000 * targets.numpy())
    assert torch.allclose(made.row_loss(1000 * logits, 1000 * targets), expected, atol=1e-9)  # whatever the unit


def test_squared_error_is_in_variances() -> None:
    logits, targets = drawn("number")
    expected = (logits[:, 0] - targets) ** 2 / targets.var(correction=0)
    assert torch.allclose(row_losses("number", "default"), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
def test_balanced_weights_give_each_class_that_is_there_the_same_say(name: str) -> None:
    _, targets = drawn("class")
    counts = torch.bincount(targets).double()
    weights = 12 / (3 * counts)
    assert float(weights[targets].mean()) == pytest.approx(1.0)
    plain, balanced = (row_losses("class", name, class_weights=weighing) for weighing in ("none", "balanced"))
    assert torch.allclose(balanced, plain * weights[targets], atol=1e-12)


def test_smoothing_is_torchs_with_a_class_that_has_no_rows() -> None:
    logits, targets = drawn("class")
    weights = torch.cat([12 / (3 * torch.bincount(targets).double()), torch.ones(1, dtype=torch.float64)])
    options: dict[str, Any] = {"label_smoothing": 0.1, "class_weights": "balanced"}
    expected = functional.cross_entropy(logits, targets, weights, label_smoothing=0.1, reduction="none")
    assert torch.allclose(row_losses("class", "cross-entropy", **options), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("class", "cross-entropy", {"label_smoothing": 0.1, "class_weights": "balanced"}),
        ("class", "focal", {"gamma": 0.5}),
        ("class", "focal", {"class_weights": "balanced"}),
        ("label", "binary-cross-entropy", {}),
        ("label", "focal", {"alpha": 0.25}),
        ("number", "mean-squared-error", {}),
        ("number", "huber", {"delta": 1.5}),
    ],
)
def test_gradients(kind: str, name: str, options: dict[str, Any]) -> None:
    made, logits, targets = objective(kind, name, **options)
    assert torch.autograd.gradcheck(lambda values: made.row_loss(values, targets), logits.requires_grad_())


def test_divergences_are_the_mean_of_both_kullback_leibler_divergences() -> None:
    for kind in MAKERS:
        made, first, targets = objective(kind)
        second = first.flip(0)
        if kind == "class":
            pair: list[Any] = [Categorical(logits=each) for each in (first, second)]
        elif kind == "label":
            pair = [Bernoulli(logits=each) for each in (first, second)]
        else:
            pair = [Normal(each[:, 0], float(targets.std(correction=0)) / 2**0.5) for each in (first, second)]
        expected = (kl_divergence(*pair) + kl_divergence(*reversed(pair))) / 2
        expected = expected.mean(-1) if kind == "label" else expected
        assert torch.allclose(made.divergence(first, second), expected, atol=1e-10)
        assert torch.equal(made.divergence(first, first), torch.zeros(12, dtype=torch.float64))
        assert torch.autograd.gradcheck(made.divergence, (first.clone().requires_grad_(), second.requires_grad_()))


@pytest.mark.parametrize(
    ("task", "loss", "problem"),
    [
        ("text-classification", {"name": "huber"}, "expected one of cross-entropy, focal, got 'huber'"),
        ("regression", {"name": "focal"}, "expected one of mean-squared-error, huber, got 'focal'"),
        ("multi-label-classification", {"name": "cross-entropy"}, "expected one of binary-cross-entropy, focal, got"),
        ("text-generation", {"name": "focal"}, "expected one of cross-entropy, got 'focal'"),
        ("regression", {"options": {"delta": 1}}, "field 'loss.options.delta': expected no such key"),
        ("regression", {"name": "huber", "options": {"delta": 0}}, "'loss.options.delta': expected greater than 0"),
    ],
)
def test_the_loss_of_another_task_is_refused(task: str, loss: Mapping[str, Any], problem: str) -> None:
    recipe = parse_recipe({"task": task, "model": "minilm", "loss": loss})
    with pytest.raises(RecipeError) as caught:
        find_task(task).objective(recipe.loss, np.array([0, 1]))
    assert problem in str(caught.value.problems[0])
    assert "chainrule show losses" in str(caught.value.problems[0]) or "options" in problem


RANKED = Lists(np.array([0, 2, 3]), np.array([1, 0, 1], np.float32), np.arange(3, dtype=np.int32))
PREDICTED: dict[str, tuple[Any, Any]] = {
    "class": (np.array([0, 1]), np.array([0, 1])),
    "classes": (np.array([[0, 1]]), np.array([[0, 1]])),
    "number": (np.array([0.5, 1.0]), np.array([0.5, 2.0])),
    "spans": (Spans.of([[(0, 3, 0)], []]), Spans.of([[(0, 3, 0)], [(1, 2, 1)]])),
    "answers": (Answers(["yes no", "no"], Spans.of([[(0, 3, 0)], [(0, 2, 0)]])), Spans.of([[(0, 3, 0)], [(0, 1, 0)]])),
    "relevances": (RANKED, RANKED.scored(np.array([0.5, 0.1, 0.3]))),
    "reply": (np.array([3, 4]), np.array([3, 2])),
    "written": (np.array([3, 4]), np.array([3, 2])),
    "relation": (np.zeros(2), np.array([[1.0] * 7, [0.0] * 7])),
    "preference": (np.array([[3, 4], [2, 2]]), np.array([1.5, -1.0])),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_what_it_measures(name: str) -> None:
    task = TASKS[name]
    targets, values = PREDICTED[task.target.kind]
    measured = task.measure(targets, Predictions(values, np.ones(len(values)), np.ones(len(values))))
    assert set(task.metrics) == set(measured)


def test_the_best_weights_go_by_the_metric_that_is_asked_for() -> None:
    task = TASKS["regression"]
    metrics = {"spearman": 0.5, "pearson": 0.6, "rmse": 2.0, "loss": 4.0}
    assert task.rank(metrics) == (-4.0, 0.5)
    assert task.rank(metrics, "rmse") == (-2.0, -4.0)
    assert task.rank(metrics, "pearson") == (0.6, -4.0)
    assert TASKS["text-classification"].rank({"accuracy": 0.7, "loss": 1.5}) == (0.7, -1.5)
    with pytest.raises(RecipeError) as caught:
        task.rank(metrics, "accuracy")
    assert str(caught.value.problems[0]) == (
        "field 'training.early_stopping_metric': expected one of spearman, pearson, rmse, loss, got 'accuracy'. "
        "Choose one of these metrics, or null for the task's own."
    )
