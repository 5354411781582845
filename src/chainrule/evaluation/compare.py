"""The verdict: is the model better than the best cheap baseline, on the same rows, beyond chance?

Every predictor is resampled together with the others, row by row, so that their scores and differences come from the
same resamples. The verdict is about one trained model on these rows; other seeds of the same recipe may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from chainrule.core.report import Estimate, Verdict
from chainrule.core.task import LOWER_IS_BETTER, Predictions, Task
from chainrule.evaluation import significance
from chainrule.evaluation.verdicts import verdict_text
from chainrule.metrics import answers, classification, entities, preferences, ranking, regression, tokens

Scores = dict[str, np.ndarray]
MIN_ROWS = 30  # fewer rows than this get no verdict
_SHARES = frozenset({"accuracy", "exact_match"})
_COUNTED = _SHARES | {"reward_accuracy"}
_CORRELATIONS = frozenset({"pearson", "spearman"})
# 1 means that all rows are right, and no resample can differ
_PERFECT = frozenset({"macro_f1", "micro_f1", "f1", *ranking.MEANS})
_MODEL = ""  # the model's key among the predictors

_WEIGHTED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Scores]] = {
    "class": classification.weighted,
    "classes": classification.multilabel_weighted,
    "number": regression.weighted,
    "spans": entities.weighted,
    "answers": answers.weighted,
    "relevances": ranking.weighted,
    "reply": tokens.weighted,
    "preference": preferences.weighted,
}
_TALLIES: dict[str, Callable[[Any, Any, int], np.ndarray]] = {
    "spans": entities.tally,
    "answers": answers.tally,
    "relevances": ranking.tally,
}


def judge(
    task: Task,
    targets: Any,
    model: Predictions,
    baselines: Mapping[str, Predictions],
    *,
    chosen: str | None,
    labels: Sequence[str],
    replicates: int = significance.REPLICATES,
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]], Verdict, dict[str, Any]]:
    """Score the model and the baselines with 95 % intervals and say whether the model is better.

    Args:
        task: names the kind of target, the primary metric, and `measure` and `detail`.
        targets: what is true of each row: class indexes (n,), a 0/1 matrix (n, labels), numbers (n,), `Spans`,
            `Answers` or `Lists`; n ≥ 1.
        model: the model's predictions of the same rows.
        baselines: name -> predictions of the same rows.
        chosen: the baseline that was better on validation, which the verdict compares with; None for none.
        labels: names of the classes, in index order.
        replicates: how many resamples and random swaps; the same call gives the same numbers.

    Returns:
        The model's metrics, each baseline's metrics, the verdict, and `task.detail` with the verdict's numbers added
        under "verdict" (what `verdict_text` takes, so that a report can say it in another language).

    Raises:
        ValueError: no rows, shapes that differ, or `chosen` is not among the baselines.
    """
    if chosen is not None and chosen not in baselines:
        raise ValueError(f"the chosen baseline {chosen!r} is not among {sorted(baselines)}")
    predictors = {_MODEL: model, **baselines}
    points = {name: task.measure(targets, predictions) for name, predictions in predictors.items()}
    rows, truth = len(targets), targets
    if task.target.kind in _TALLIES:  # from here on a row is what it adds to the sums that scores are ratios of
        truth, predictors = np.zeros(rows), _tallied(task.target.kind, targets, predictors, len(labels))
    drawn, accelerations = _replicates(task.target.kind, truth, predictors, replicates)
    estimates = {
        name: {
            metric: _estimate(metric, value, rows, drawn[name][metric], accelerations[name][metric])
            for metric, value in scores.items()
        }
        for name, scores in points.items()
    }
    numbers = _numbers(task, truth, predictors, chosen, drawn, points)
    fields = ("baseline", "better", "difference", "low", "high", "p_value")
    verdict = Verdict(text=verdict_text(numbers, "en"), **{field: numbers[field] for field in fields})
    detail = task.detail(targets, model, labels) | {"verdict": numbers}
    return estimates.pop(_MODEL), estimates, verdict, detail


def _tallied(kind: str, targets: Any, predictors: Mapping[str, Predictions], labels: int) -> dict[str, Predictions]:
    tally = _TALLIES[kind]
    return {name: replace(item, values=tally(targets, item.values, labels)) for name, item in predictors.items()}


def _replicates(
    kind: str, targets: np.ndarray, predictors: Mapping[str, Predictions], count: int
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Bootstrap scores (R,) of each predictor by metric, all from the same resamples, and their accelerations."""
    values = [predictions.values for predictions in predictors.values()]
    first, counts = _cells(kind, targets, values)
    names: list[tuple[str, str]] = []

    def score(weights: np.ndarray) -> np.ndarray:
        names.clear()
        columns = []
        for name, predictions in predictors.items():
            for metric, scores in _WEIGHTED[kind](targets[first], predictions.values[first], weights).items():
                names.append((name, metric))
                columns.append(scores)
        return np.stack(columns, axis=1)

    found, accelerated = (
        significance.bootstrap(score, counts, replicates=count),
        significance.acceleration(score, counts),
    )
    replicates: dict[str, Scores] = {name: {} for name in predictors}
    accelerations: dict[str, dict[str, float]] = {name: {} for name in predictors}
    for column, (name, metric) in enumerate(names):
        replicates[name][metric] = found[:, column]
        accelerations[name][metric] = float(accelerated[column])
    for name, (losses, speed) in _loss_replicates(_sizes(kind, targets), predictors, count).items():
        replicates[name]["loss"] = losses
        accelerations[name]["loss"] = speed
        if kind == "reply":  # the interval is the same through any rising function
            replicates[name]["perplexity"] = np.exp(np.minimum(losses, tokens.MAX_LOSS))
            accelerations[name]["perplexity"] = speed
    return replicates, accelerations


def _sizes(kind: str, targets: np.ndarray) -> np.ndarray:
    """How much each row's loss counts (n,): a reply as many times as it has tokens."""
    return np.asarray(targets, dtype=np.float64) if kind == "reply" else np.ones(len(targets))


def _loss_replicates(
    sizes: np.ndarray, predictors: Mapping[str, Predictions], count: int
) -> dict[str, tuple[np.ndarray, float]]:
    losses = {name: item.losses for name, item in predictors.items() if item.losses is not None}
    if not losses:
        return {}
    matrix = np.stack([np.asarray(column, dtype=np.float64) for column in losses.values()], axis=1)
    ones = np.ones(len(matrix), dtype=np.int64)
    parts = matrix * sizes[:, None]
    found = significance.bootstrap(lambda weights: weights @ parts / (weights @ sizes)[:, None], ones, replicates=count)
    speeds = significance.mean_acceleration(parts - sizes[:, None] * (parts.sum(axis=0) / sizes.sum()))
    return {name: (found[:, i], float(speeds[i])) for i, name in enumerate(losses)}


def _cells(kind: str, targets: np.ndarray, values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One row index for each distinct row of (targets, values …), and how many rows are like it."""
    if kind not in ("class", "classes"):
        return np.arange(len(targets)), np.ones(len(targets), dtype=np.int64)
    columns = [np.asarray(column).reshape(len(targets), -1) for column in (targets, *values)]
    if kind == "classes":
        packed = np.packbits(np.concatenate(columns, axis=1) > 0.5, axis=1)
    else:
        packed = np.concatenate(columns, axis=1).astype(np.int32)
    packed = np.ascontiguousarray(packed)
    keys = packed.view(np.dtype((np.void, packed.dtype.itemsize * packed.shape[1]))).ravel()
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return first, counts


def _estimate(metric: str, value: float, rows: int, replicates: np.ndarray, accelerated: float) -> Estimate:
    """Each score gets the method that covered best in simulation (tests/evaluation/test_coverage.py)."""
    if metric in _COUNTED or (metric in _PERFECT and value == 1.0):
        low, high = significance.proportion_interval(round(value * rows), rows)
    elif metric in _CORRELATIONS:
        low, high = significance.interval(replicates, rows)
    else:
        low, high = significance.corrected_interval(value, replicates, rows, accelerated)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _numbers(
    task: Task,
    targets: np.ndarray,
    predictors: Mapping[str, Predictions],
    chosen: str | None,
    replicates: Mapping[str, Scores],
    points: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """What the verdict says, as plain JSON values."""
    metric, rows = task.primary_metric, len(targets)
    numbers: dict[str, Any] = {"metric": metric, "rows": rows, "baseline": chosen, "better": False, "worse": False}
    numbers |= dict.fromkeys(("difference", "low", "high", "p_value", "rows_to_settle"))
    if chosen is None:
        return numbers
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    difference = sign * (points[_MODEL][metric] - points[chosen][metric])
    numbers["difference"] = difference
    if rows < MIN_ROWS:
        return numbers
    drawn = sign * (replicates[_MODEL][metric] - replicates[chosen][metric])
    p_value = _randomization_p(task, targets, predictors[_MODEL], predictors[chosen], len(drawn))
    found = significance.compare(difference, drawn, rows, p_value)
    numbers |= {"low": found.low, "high": found.high, "p_value": found.p_value}
    numbers |= {"better": found.low > 0, "worse": found.high < 0}
    if not (numbers["better"] or numbers["worse"]):
        numbers["rows_to_settle"] = _rows_to_settle(difference, float(drawn.std()), rows)
    return numbers


def _randomization_p(task: Task, targets: np.ndarray, model: Predictions, baseline: Predictions, count: int) -> float:
    kind, metric = task.target.kind, task.primary_metric
    if metric in _SHARES or (metric == "micro_f1" and kind == "class"):
        right = [(targets == item.values).reshape(len(targets), -1).all(axis=1) for item in (model, baseline)]
        return significance.mcnemar(*right)
    if metric == "loss":
        return _loss_p(_sizes(kind, targets), model, baseline, count)
    pair = [np.asarray(item.values) for item in (model, baseline)]
    first, counts = _cells(kind, targets, pair)
    truth, pair = targets[first], [values[first] for values in pair]
    scored = _swap_score(kind, metric)
    if metric in ("pearson", "spearman"):
        truth, pair = _standard(truth, metric), [_standard(values, metric) for values in pair]
    both, truths = np.concatenate(pair), np.concatenate([truth, truth])

    def swapped_difference(swapped: np.ndarray) -> np.ndarray:
        kept = counts - swapped
        first_scores = scored(truths, both, np.concatenate([kept, swapped], axis=1))
        second_scores = scored(truths, both, np.concatenate([swapped, kept], axis=1))
        return np.asarray(first_scores - second_scores)

    observed = float(swapped_difference(np.zeros((1, len(counts))))[0])
    return significance.randomization(swapped_difference, counts, observed, replicates=count)


def _swap_score(kind: str, metric: str) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    if metric in ("pearson", "spearman"):
        return regression.weighted_pearson
    if metric == "rmse":
        return regression.weighted_rmse
    return lambda targets, values, weights: _WEIGHTED[kind](targets, values, weights)[metric]


def _standard(values: np.ndarray, metric: str) -> np.ndarray:
    """Put predictions on one scale, since swapping is only fair between numbers that mean the same."""
    values = stats.rankdata(values) if metric == "spearman" else np.asarray(values, dtype=np.float64)
    spread = values.std() if np.ptp(values) > 0 else 0.0
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))


def _loss_p(sizes: np.ndarray, model: Predictions, baseline: Predictions, count: int) -> float:
    if model.losses is None or baseline.losses is None:
        raise ValueError("to compare losses both predictions need row losses")
    gap = np.asarray(model.losses, dtype=np.float64) - np.asarray(baseline.losses, dtype=np.float64)
    gap = gap * sizes / sizes.mean()
    counts = np.ones(len(gap), dtype=np.int64)
    observed = float(gap.mean())
    return significance.randomization(
        lambda swapped: (1 - 2 * swapped) @ gap / len(gap), counts, observed, replicates=count
    )


def _rows_to_settle(difference: float, spread: float, rows: int) -> int | None:
    """How many more rows would show this difference four times in five, if it is real; None if out of reach."""
    if difference == 0 or spread == 0:
        return None
    reach = float(stats.norm.isf(significance.LEVEL / 2) + stats.norm.isf(0.2))
    asked = rows * (reach * spread / difference) ** 2
    more = asked - rows
    if not 0 < more <= 100 * rows:
        return None
    unit = 10 ** max(0, math.floor(math.log10(more)) - 1)
    return int(math.ceil(more / unit) * unit)
