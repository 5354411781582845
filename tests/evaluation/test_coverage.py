"""The statistics by simulation: intervals cover, and nothing is called better that is not.

Each case draws many test sets from one known truth. The short version runs always, with bounds for its own noise; the
long one (2,000 test sets a case, marked slow) prints the table that LOG.md keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from chainrule.core.task import Predictions, Task
from chainrule.evaluation.compare import judge
from chainrule.tasks import multi_label_classification, regression, text_classification

pytestmark = pytest.mark.unit

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
LABELS = [str(i) for i in range(10)]


def classes(number: int, skew: float, model: float, baseline: float) -> Draw:
    """Targets with class shares that fall by `skew`; both predictors guess where they do not know."""

    def draw(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shares = skew ** np.arange(number)
        shares /= shares.sum()
        targets, guesses, others = (generator.choice(number, rows, p=shares) for _ in range(3))
        hard = generator.random(rows)  # rows are hard for both, so that the pairing matters
        first = np.where(0.5 * hard + 0.5 * generator.random(rows) < model, targets, guesses)
        second = np.where(0.5 * hard + 0.5 * generator.random(rows) < baseline, targets, others)
        return targets, first, second

    return draw


def lopsided(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equally good, but not exchangeable: one errs on one class, the other on the other, and to different classes."""
    targets = generator.integers(0, 2, rows)
    wrong = generator.random((2, rows)) < 0.3
    first = np.where((targets == 0) & wrong[0], 1, targets)
    second = np.where((targets == 1) & wrong[1], 0, targets)
    return targets, first, second


def numbers(model: float, baseline: float, scale: float, freedom: float = 50.0) -> Draw:
    """Normal targets; noise of Student's t; the baseline's numbers are on another scale."""

    def draw(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        targets = generator.normal(size=rows)
        shared, one, two = generator.standard_t(freedom, size=(3, rows))
        return targets, targets + model * (one + shared), scale * (targets + baseline * (two + shared))

    return draw


def several(model: float, baseline: float) -> Draw:
    def draw(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shares = np.linspace(0.05, 0.3, 8)
        targets, guesses, others = (generator.random((rows, 8)) < shares for _ in range(3))
        hard = generator.random((rows, 1))
        first = np.where(0.5 * hard + 0.5 * generator.random((rows, 8)) < model, targets, guesses)
        second = np.where(0.5 * hard + 0.5 * generator.random((rows, 8)) < baseline, targets, others)
        return targets.astype(np.uint8), first.astype(np.uint8), second.astype(np.uint8)

    return draw


@dataclass(frozen=True)
class Case:
    name: str
    task: Task
    metric: str
    draw: Draw
    null: bool


def cases() -> list[Case]:
    single, many, number = text_classification.TASK, multi_label_classification.TASK, regression.TASK
    found = []
    for metric in ("accuracy", "macro_f1"):
        found.append(Case("2 classes, equal", single, metric, classes(2, 0.6, 0.7, 0.7), True))
        found.append(Case("2 classes, equal, not exchangeable", single, metric, lopsided, True))
        found.append(Case("6 classes, equal", single, metric, classes(6, 0.7, 0.7, 0.7), True))
        found.append(Case("6 classes, better", single, metric, classes(6, 0.7, 0.75, 0.65), False))
    for metric in ("micro_f1", "macro_f1"):
        found.append(Case("8 labels, equal", many, metric, several(0.7, 0.7), True))
        found.append(Case("8 labels, better", many, metric, several(0.75, 0.65), False))
    for metric in ("pearson", "spearman"):
        found.append(Case("numbers on two scales, equal", number, metric, numbers(0.5, 0.5, 3.0), True))
        found.append(Case("numbers on two scales, better", number, metric, numbers(0.4, 0.6, 3.0), False))
    found.append(Case("numbers, equal", number, "rmse", numbers(0.5, 0.5, 1.0), True))
    found.append(Case("numbers, better", number, "rmse", numbers(0.4, 0.6, 1.0), False))
    found.append(Case("numbers with heavy tails, equal", number, "rmse", numbers(0.5, 0.5, 1.0, 5.0), True))
    return found


@dataclass
class Tally:
    """Shares over the simulated test sets."""

    better: float
    worse: float
    covers_value: float
    covers_difference: float


def simulate(case: Case, rows: int, sets: int, replicates: int, seed: int = 7) -> Tally:
    task = Task(**{**vars(case.task), "primary_metric": case.metric})
    generator = np.random.default_rng(seed)
    truth, first, second = case.draw(generator, 400_000)
    sign = -1.0 if case.metric == "rmse" else 1.0
    value = task.measure(truth, Predictions(first, first))[case.metric]
    gap = 0.0 if case.null else sign * (value - task.measure(truth, Predictions(second, second))[case.metric])
    counts = np.zeros(4)
    for _ in range(sets):
        targets, model, baseline = case.draw(generator, rows)
        metrics, _, verdict, detail = judge(
            task,
            targets,
            Predictions(model, model),
            {"tfidf": Predictions(baseline, baseline)},
            chosen="tfidf",
            labels=LABELS[:8] if targets.ndim == 2 else LABELS,
            replicates=replicates,
        )
        assert verdict.low is not None
        assert verdict.high is not None
        estimate = metrics[case.metric]
        counts += [
            verdict.better,
            detail["verdict"]["worse"],
            estimate.low <= value <= estimate.high,
            verdict.low <= gap <= verdict.high,
        ]
    return Tally(*(counts / sets))


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.metric}, {case.name}")
def test_short_simulation(case: Case) -> None:
    sets = 40
    found = simulate(case, rows=100, sets=sets, replicates=100)
    least = stats.binom.ppf(1e-4, sets, 0.92) / sets  # 100 rows and 100 replicates cover a little less than 95 %
    most = stats.binom.isf(1e-4, sets, 0.05) / sets
    assert found.covers_value >= (least if "heavy" not in case.name else 0.7)
    assert found.covers_difference >= least
    if case.null:
        assert found.better <= most
        assert found.worse <= most


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.metric}, {case.name}")
def test_long_simulation(case: Case, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    sets = 2_000
    found = simulate(case, rows=rows, sets=sets, replicates=500)
    with capsys.disabled():
        print(
            f"\n| {case.metric} | {case.name} | {rows} | {100 * found.better:.1f} | {100 * found.worse:.1f} | "
            f"{100 * found.covers_value:.1f} | {100 * found.covers_difference:.1f} |"
        )
    noise = 3 * np.sqrt(0.05 * 0.95 / sets)
    if case.null:
        assert found.better <= 0.05 + noise
    if "heavy" not in case.name and rows >= 300:
        assert 0.93 - noise <= found.covers_value <= 0.97 + noise
        assert 0.93 - noise <= found.covers_difference
