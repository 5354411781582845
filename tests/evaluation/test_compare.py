from __future__ import annotations

import json

import numpy as np
import pytest

from chainrule.core.task import Predictions, Task
from chainrule.evaluation.compare import judge, judge_texts
from chainrule.evaluation.verdicts import verdict_text
from chainrule.metrics import written
from chainrule.tasks import multi_label_classification, regression, text_classification

pytestmark = pytest.mark.unit

LABELS = ["no", "yes"]


def said(values: np.ndarray, losses: np.ndarray | None = None) -> Predictions:
    return Predictions(values, np.ones(values.shape), losses)


def answers(rows: int, model: float, baseline: float) -> tuple[np.ndarray, Predictions, Predictions]:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, rows)
    one, two = (np.where(generator.random(rows) < share, targets, 1 - targets) for share in (model, baseline))
    return targets, said(one, generator.random(rows)), said(two)


def test_a_better_model_is_called_better() -> None:
    targets, model, baseline = answers(500, 0.9, 0.7)
    metrics, baselines, verdict, detail = judge(
        text_classification.TASK, targets, model, {"tfidf": baseline}, chosen="tfidf", labels=LABELS
    )
    assert verdict.better
    assert verdict.low is not None
    assert verdict.low > 0
    assert verdict.p_value is not None
    assert verdict.p_value < 0.05
    assert verdict.text.startswith("Better than TF-IDF by ")
    assert "not about other seeds" in verdict.text
    assert set(metrics) == {"accuracy", "macro_f1", "micro_f1", "f1", "mcc", "loss"}
    assert set(baselines["tfidf"]) == {"accuracy", "macro_f1", "micro_f1", "f1", "mcc"}
    assert all(item.low <= item.value <= item.high for item in metrics.values())
    assert detail["verdict"]["difference"] == verdict.difference
    json.dumps(detail, allow_nan=False)


def test_a_worse_model_is_called_worse() -> None:
    targets, model, baseline = answers(500, 0.7, 0.9)
    verdict = judge(text_classification.TASK, targets, model, {"tfidf": baseline}, chosen="tfidf", labels=LABELS)[2]
    assert not verdict.better
    assert verdict.text.startswith("Worse than TF-IDF by ")
    assert "−" not in verdict.text


def test_no_difference_is_not_shown_and_the_rows_it_would_take_are_told() -> None:
    targets, model, baseline = answers(300, 0.86, 0.84)
    verdict, detail = judge(
        text_classification.TASK, targets, model, {"tfidf": baseline}, chosen="tfidf", labels=LABELS
    )[2:]
    assert not verdict.better
    assert verdict.text.startswith("Not shown to be better than TF-IDF (difference ")
    assert f"about {detail['verdict']['rows_to_settle']:,} more test rows" in verdict.text


def test_the_same_predictions_differ_by_nothing() -> None:
    targets, model, _ = answers(100, 0.8, 0.8)
    verdict = judge(
        text_classification.TASK, targets, model, {"majority": said(model.values)}, chosen="majority", labels=LABELS
    )[2]
    assert (verdict.difference, verdict.low, verdict.high, verdict.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert not verdict.better


def test_few_rows_get_no_verdict() -> None:
    targets, model, baseline = answers(29, 1.0, 0.2)
    verdict = judge(text_classification.TASK, targets, model, {"tfidf": baseline}, chosen="tfidf", labels=LABELS)[2]
    assert not verdict.better
    assert verdict.low is None
    assert "29 rows are too few" in verdict.text


def test_without_a_baseline_there_is_no_verdict() -> None:
    targets, model, _ = answers(40, 1.0, 0.2)
    _, baselines, verdict, _ = judge(text_classification.TASK, targets, model, {}, chosen=None, labels=LABELS)
    assert baselines == {}
    assert verdict.text == "No verdict: there is no baseline to compare with."
    with pytest.raises(ValueError, match="tfidf"):
        judge(text_classification.TASK, targets, model, {}, chosen="tfidf", labels=LABELS)


def test_all_rows_right_still_leave_doubt() -> None:
    targets, model, _ = answers(60, 1.0, 0.2)
    metrics = judge(text_classification.TASK, targets, model, {}, chosen=None, labels=LABELS)[0]
    assert metrics["accuracy"].low < 0.96
    assert metrics["macro_f1"].low < 0.96


def test_lower_rmse_is_better() -> None:
    generator = np.random.default_rng(1)
    targets = generator.normal(size=200)
    model, baseline = said(targets + 0.1 * generator.normal(size=200)), said(np.zeros(200))
    task = Task(**{**vars(regression.TASK), "primary_metric": "rmse"})
    verdict = judge(task, targets, model, {"mean": baseline}, chosen="mean", labels=["score"])[2]
    assert verdict.better
    assert verdict.text.startswith("Better than the mean by 0.")
    assert "points" not in verdict.text


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_correlation_against_a_constant(metric: str) -> None:
    generator = np.random.default_rng(2)
    targets = generator.normal(size=100)
    task = Task(**{**vars(regression.TASK), "primary_metric": metric})
    model, baseline = said(targets + generator.normal(size=100)), said(np.full(100, 0.3))
    verdict = judge(task, targets, model, {"mean": baseline}, chosen="mean", labels=["score"])[2]
    assert verdict.better


@pytest.mark.parametrize("metric", ["exact_match", "micro_f1", "macro_f1", "f1"])
def test_several_labels(metric: str) -> None:
    generator = np.random.default_rng(3)
    targets = (generator.random((150, 5)) < 0.3).astype(np.float32)
    model = (targets > 0.5) ^ (generator.random((150, 5)) < 0.05)
    task = Task(**{**vars(multi_label_classification.TASK), "primary_metric": metric})
    baselines = {"majority": said(np.zeros((150, 5), dtype=np.uint8))}
    verdict = judge(task, targets, said(model.astype(np.uint8)), baselines, chosen="majority", labels=list("abcde"))[2]
    assert verdict.better


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_loss_can_be_the_primary_metric(shift: float) -> None:
    targets, model, baseline = answers(200, 0.8, 0.8)
    assert model.losses is not None
    noise = np.random.default_rng(4).normal(shift, 0.5, 200)
    task = Task(**{**vars(text_classification.TASK), "primary_metric": "loss"})
    other = said(baseline.values, model.losses + noise)
    verdict = judge(task, targets, model, {"tfidf": other}, chosen="tfidf", labels=LABELS)[2]
    assert verdict.better == (shift > 0)


def test_the_verdict_is_the_same_each_time() -> None:
    targets, model, baseline = answers(200, 0.8, 0.75)
    one, two = (
        judge(text_classification.TASK, targets, model, {"tfidf": baseline}, chosen="tfidf", labels=LABELS)
        for _ in range(2)
    )
    assert one == two


def test_the_verdict_in_chinese() -> None:
    numbers = {
        "metric": "accuracy", "rows": 1000, "baseline": "tfidf", "better": True, "worse": False,
        "difference": 0.041, "low": 0.026, "high": 0.057, "p_value": 0.001, "rows_to_settle": None,
    }  # fmt: skip
    assert verdict_text(numbers, "en") == (
        "Better than TF-IDF by 4.1 points (95 % 2.6 to 5.7). "
        "This is about this trained model on these 1,000 rows (accuracy), not about other seeds."
    )
    assert verdict_text(numbers, "zh").startswith("优于 TF-IDF 基线，相差 4.1 个百分点（95 % 区间 2.6 至 5.7）。")
    unsure = numbers | {"better": False, "difference": 0.008, "low": -0.011, "high": 0.026, "rows_to_settle": 900}
    assert verdict_text(unsure, "en").startswith(
        "Not shown to be better than TF-IDF (difference +0.8 points, 95 % −1.1 to 2.6). If the difference is real, "
        "about 900 more test rows would likely show it."
    )
    assert verdict_text(unsure, "zh").startswith("未能证明优于 TF-IDF 基线（差异 +0.8 个百分点")
    few = numbers | {"rows": 12, "low": None, "high": None, "better": False}
    assert "太少" in verdict_text(few, "zh")
    assert verdict_text(numbers | {"baseline": None}, "zh") == "没有结论：没有可比较的基线。"


def test_texts_are_judged_by_what_is_written() -> None:
    right = [[f"the {word} film was seen in the town of {word}"] for word in WORDS_OF_ROWS]
    exact = written.tally(right, written.Written([row[0] for row in right], np.full(len(right), 10)))
    half = written.tally(right, written.Written([row[0][:20] for row in right], np.full(len(right), 5)))
    metrics, others, verdict, numbers = judge_texts(exact, {"copy": half}, "rougeL", chosen="copy", replicates=500)
    assert metrics["rougeL"].value == metrics["bleu"].value == 1.0
    assert metrics["rougeL"].low < 1.0, "that all of some rows are right does not prove it of all rows"
    assert others["copy"]["rougeL"].low <= others["copy"]["rougeL"].value <= others["copy"]["rougeL"].high
    assert verdict.better
    assert verdict.difference == pytest.approx(1.0 - others["copy"]["rougeL"].value)
    assert numbers["rows"] == len(right)
    _, _, same, _ = judge_texts(half, {"copy": half}, "rougeL", chosen="copy", replicates=500)
    assert (same.better, same.difference) == (False, 0.0)
    _, _, alone, _ = judge_texts(half, {}, "rougeL", chosen=None, replicates=500)
    assert alone.baseline is None


WORDS_OF_ROWS = [f"{first}{second}" for first in ("red", "old", "new", "odd", "big", "dim") for second in "abcdefg"]
