"""Which weights are the best, and when it is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.errors import RecipeError
from chainrule.training.validation import waits

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ranks", "min_delta", "expected"),
    [
        ([], 0.0, []),
        ([(0.5, -1.0), (0.6, -1.0), (0.6, -0.9), (0.6, -0.9), (0.4, -0.1)], 0.0, [0, 0, 0, 1, 2]),
        ([(0.5, -1.0), (0.6, -1.0), (0.6, -0.9), (0.6, -0.9), (0.4, -0.1)], 0.05, [0, 0, 1, 2, 3]),
        ([(0.50, 0.0), (0.54, 0.0), (0.58, 0.0), (0.62, 0.0)], 0.1, [0, 1, 2, 0]),  # small steps add up
        ([(-4.0, 0.0), (-3.95, 0.0), (-3.0, 0.0)], 0.1, [0, 1, 0]),
        ([(float("nan"), 0.0), (0.1, 0.0), (float("nan"), 0.0)], 0.0, [1, 0, 1]),
    ],
)
def test_an_evaluation_waits_for_a_better_one(
    ranks: list[tuple[float, float]], min_delta: float, expected: list[int]
) -> None:
    assert waits(ranks, min_delta) == expected


def run(model: Path, data: Path, out: Path, **more: Any) -> Any:
    settings = {"model": str(model), "training.epochs": 12, "optimizer.learning_rate": 2e-2, "training.threads": 1}
    return chainrule.train(str(data), out=out, settings={**settings, "training.precision": "float32", **more})


def evaluations(run: Any) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["event"] == "evaluation"]


def test_the_best_weights_and_the_stop_follow_the_metric(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    more = {"training.early_stopping_metric": "loss", "training.patience": 2, "training.evaluate_every_steps": 5}
    done = run(tiny_bert, reviews, tmp_path / "run", **more)
    found = evaluations(done)
    losses = {event["step"]: event["metrics"]["loss"] for event in found}
    assert done.summary["best_step"] == min(losses, key=lambda step: losses[step])
    assert done.summary["metrics"]["loss"] == min(losses.values())
    assert done.summary["stopped"] == "no better validation loss in 2 evaluations"


def test_a_gain_too_small_is_no_reason_to_go_on(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    """The best weights are still the best, however small the gain."""
    more = {"training.early_stopping_metric": "loss", "training.patience": 2, "training.evaluate_every_steps": 2}
    slow = {"optimizer.learning_rate": 1e-4, "schedule": "constant"}
    done = run(tiny_bert, reviews, tmp_path / "run", **more, **slow, **{"training.min_delta": 10.0})
    assert len(evaluations(done)) == 3
    losses = [event["metrics"]["loss"] for event in evaluations(done)]
    assert done.summary["metrics"]["loss"] == min(losses)


def test_the_rate_falls_where_validation_stands_still(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    more = {"schedule": {"name": "reduce-on-plateau", "warmup": 0.0, "options": {"patience": 1, "factor": 0.5}}}
    still = {"optimizer.learning_rate": 1e-9, "training.steps": 8, "training.evaluate_every_steps": 2}
    done = run(tiny_bert, reviews, tmp_path / "run", **more, **still, **{"training.min_delta": 0.5})
    rates = [event["learning_rate"] for event in done.events() if event["event"] == "step"]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-9, 1e-9, 5e-10, 5e-10, 2.5e-10, 2.5e-10])


def test_a_metric_the_task_lacks_is_refused_before_anything_is_made(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no metric 'spearman'") as caught:
        chainrule.train(str(reviews), out=tmp_path / "run", settings={"training.early_stopping_metric": "spearman"})
    assert str(caught.value.problems[0]) == (
        "field 'training.early_stopping_metric': expected one of accuracy, macro_f1, micro_f1, f1, mcc, loss, "
        "got 'spearman'. Choose one of these metrics, or null for the task's own."
    )
    assert not (tmp_path / "run").exists()
