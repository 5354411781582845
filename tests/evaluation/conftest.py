"""Run folders as `train` and `evaluate` write them, with made-up numbers that look like real ones.

To look at the pages: `python tests/evaluation/conftest.py FOLDER` writes a run folder of each kind with its page.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from chainrule.core.report import CheckReport, EvaluationReport, Finding, SplitSummary, Verdict
from chainrule.core.task import Predictions
from chainrule.metrics import classification, regression

MakeRun = Callable[[str], Path]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }} {% raw %}",
    "</style></title><svg/onload=alert(3)>",
    "javascript:alert(4)\n| a | b |\u202e\u0000",
)
NOUNS = ["card", "transfer", "cash", "top_up", "refund", "pin", "fee"]
STATES = "pending failed declined not_working arrival lost limit reverted charge delay status".split()  # noqa: SIM905
LABELS: dict[str, Sequence[str]] = {
    "three": ("negative", "neutral", "positive"),
    "chinese": ("体育", "财经", "科技与互联网", "娱乐", "国际时事新闻"),
    "many": tuple(f"{noun}_{state}" for noun in NOUNS for state in STATES),
    "hostile": HOSTILE,
    "unfinished": ("no", "yes"),
    "unjudged": ("no", "yes"),
    "worse": ("not_equivalent", "equivalent"),
    "few": ("no", "yes"),
    "several": (
        "admiration",
        "amusement",
        "anger",
        "annoyance",
        "approval",
        "caring",
        "confusion",
        "curiosity",
        "desire",
        "disappointment",
        "disgust",
        "embarrassment",
        "excitement",
        "fear",
        "gratitude",
        "grief",
        "joy",
        "love",
        "nervousness",
        "optimism",
        "pride",
        "realization",
        "relief",
        "remorse",
        "sadness",
        "surprise",
        "neutral",
    ),
    "numbers": ("similarity",),
}
KINDS = tuple(LABELS)


def write_run(folder: Path, kind: str) -> Path:
    """Write a run folder of a kind (a key of LABELS) and return it."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True)
    task = {"several": "multi-label-classification", "numbers": "regression"}.get(kind, "text-classification")
    primary = {"several": "micro_f1", "numbers": "pearson"}.get(kind, "accuracy")
    labels = LABELS[kind]
    _write_recipe(folder, kind, task)
    _write_check(folder, kind, task, labels, random)
    best = _write_events(folder, primary, random, torn=kind == "unfinished")
    if kind == "unfinished":
        return folder
    parameters = {"total": 22_713_987, "trained": 22_713_987 if kind != "worse" else 3_548_930}
    summary = {
        "run": f"runs/{kind}" if kind != "hostile" else "runs/<b>bold</b>",
        "artifact": f"runs/{kind}/artifact",
        "strategy": "full" if kind != "worse" else "partial",
        "trained_parameters": parameters["trained"],
        "parameters": parameters["total"],
        "metrics": {primary: best, "loss": 0.31},
        "primary_metric": primary,
        "seconds": 84.2,
        "seconds_total": 131.9,
        "peak_memory_mb": 1412.5,
    }
    _write(folder / "summary.json", summary)
    (folder / "evaluations").mkdir()
    if kind != "unjudged":
        split = "validation" if kind == "chinese" else None if kind == "hostile" else "test"
        name = {"chinese": "validation"}.get(kind, "test")
        _write(folder / "evaluations" / f"{name}.json", _evaluation(kind, task, primary, labels, split, random))
    return folder


def _write_recipe(folder: Path, kind: str, task: str) -> None:
    asked: dict[str, Any] = {
        "data": {
            "source": "reviews.csv" if kind != "hostile" else "<script>alert(5)</script>.csv",
            "fields": {"text": "review"},
        },
        "task": {"name": task, "options": {}},
        "model": {"name": "minilm", "max_length": None},
        "strategy": {"name": "full", "options": {}},
        "structure": {"dropout": None, "attention_dropout": None},
        "optimizer": {"name": "adamw", "learning_rate": None, "weight_decay": 0.01, "max_gradient_norm": 1.0},
        "schedule": {"name": "linear", "warmup": 0.1},
        "loss": {"name": "default", "options": {}},
        "training": {
            "epochs": 3,
            "batch_size": 32,
            "group_by_length": True,
            "precision": "auto",
            "device": "auto",
            "threads": None,
        },
        "seed": 0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True), encoding="utf-8")
    asked["model"]["max_length"] = 128
    asked["optimizer"]["learning_rate"] = 5e-5
    asked["training"] |= {"precision": "bfloat16", "device": "cpu", "threads": 2}
    (folder / "resolved.yaml").write_text(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True), encoding="utf-8")
    environment = {
        "chainrule": "0.1.0",
        "python": "3.11.9",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "platform": "Linux x86_64",
        "cpu": "Example CPU 4.2 GHz",
        "cores": 2,
        "threads": 2,
        "memory_gb": 7.8,
        "device": "cpu",
        "precision": "bfloat16",
    }
    _write(folder / "environment.json", environment)


def _write_check(folder: Path, kind: str, task: str, labels: Sequence[str], random: np.random.Generator) -> None:
    sizes = {"train": 4_812, "validation": 601, "test": 1_204}
    weights = random.dirichlet(np.full(len(labels), 6.0))
    splits = {}
    for name, rows in sizes.items():
        counts = (
            {}
            if kind == "numbers"
            else {label: int(rows * weight) for label, weight in zip(labels, weights, strict=True)}
        )
        lengths = {"mean": 21.4, "median": 18.0, "p95": 52.0, "max": 311.0}
        splits[name] = SplitSummary(rows=rows, file=f"data/{name}.csv", labels=counts, lengths=lengths)
    findings = (
        Finding(
            kind="duplicate-input",
            severity="warning",
            count=37,
            split="train",
            file="data/train.csv",
            message="37 rows repeat the input of an earlier row.",
            todo="Keep them, or set data.clean.exact_duplicates.",
            rows=(12, 13, 14, 88, 240, 241, 977, *range(2_000, 2_030)),
        ),
        Finding(
            kind="too-long",
            severity="warning",
            count=19,
            split="train",
            message="19 rows are longer than 128 tokens, by up to 183.",
            todo="Raise --max-length, or accept that their ends are not read.",
            rows=(5, 90, 91, 92, 1_024),
        ),
        Finding(
            kind="imbalance",
            severity="info",
            count=0,
            message="The largest class has 4.1 times the rows of the smallest.",
        ),
    )
    source = "reviews.csv" if kind != "hostile" else "/home/somebody/secret/place/<img src=x>.csv"
    fields = {"text": "review", "label": "stars"} if kind != "hostile" else {"text": HOSTILE[0], "label": HOSTILE[1]}
    report = CheckReport(
        task=task,
        source=source,
        fields=fields,
        splits=splits,
        labels=tuple(labels),
        max_length=128,
        findings=() if kind == "numbers" else findings,
    )
    _write(folder / "check.json", report.as_dict())


def _write_events(folder: Path, primary: str, random: np.random.Generator, *, torn: bool) -> float:
    per_epoch, epochs = 151, 3
    total = per_epoch * epochs
    events: list[dict[str, Any]] = [{"event": "start", "steps": total, "task": "any", "primary_metric": primary}]
    best, score = 0.0, 0.0
    for step in range(1, (300 if torn else total) + 1):
        progress = step / total
        loss = 1.1 * math.exp(-3.2 * progress) + 0.16 + float(random.normal(0, 0.07)) * (1 - 0.5 * progress)
        rate = 5e-5 * min(progress / 0.1, (1 - progress) / 0.9)
        events.append(
            {
                "event": "step",
                "step": step,
                "epoch": step / per_epoch,
                "loss": max(loss, 0.01),
                "learning_rate": rate,
                "gradient_norm": 1.0,
                "rows": 32,
                "tokens": 700,
                "seconds": 0.18,
            }
        )
        if step % per_epoch == 0:
            epoch = step // per_epoch
            score = {1: 0.842, 2: 0.871, 3: 0.866}[epoch]
            best = max(best, score)
            events.append(
                {
                    "event": "evaluation",
                    "step": step,
                    "epoch": float(epoch),
                    "best": score == best,
                    "metrics": {primary: score, "loss": {1: 0.47, 2: 0.36, 3: 0.39}[epoch]},
                }
            )
    if not torn:
        events.append({"event": "finish", "reason": "all steps done", "best_step": 302})
    text = "".join(json.dumps(event) + "\n" for event in events) + ('{"event": "step", "st' if torn else "")
    (folder / "events.jsonl").write_text(text, encoding="utf-8")
    return best


def _evaluation(
    kind: str, task: str, primary: str, labels: Sequence[str], split: str | None, random: np.random.Generator
) -> dict[str, Any]:
    rows = 24 if kind == "few" else 1_204
    targets, model, cheap, free = _predictions(kind, rows, len(labels), random)
    measures = {
        "several": (classification.multilabel_measure, classification.multilabel_detail),
        "numbers": (regression.measure, regression.detail),
    }
    measure, detail = measures.get(kind, (classification.measure, classification.detail))
    scores = {
        name: measure(targets, Predictions(said, said))
        for name, said in (("", model), ("tfidf", cheap), ("free", free))
    }
    free_name = "mean" if kind == "numbers" else "majority"
    baselines = {free_name: _estimates(scores["free"], rows), "tfidf": _estimates(scores["tfidf"], rows)}
    gap = scores[""][primary] - scores["tfidf"][primary]
    spread = 0.5 / math.sqrt(rows)
    few = kind == "few"
    verdict = Verdict(
        text="…",
        baseline="tfidf",
        better=gap - 1.96 * spread > 0 and not few,
        difference=gap,
        low=None if few else gap - 1.96 * spread,
        high=None if few else gap + 1.96 * spread,
        p_value=None if few else 0.21 if kind == "chinese" else 0.0004,
    )
    report = EvaluationReport(
        artifact=f"runs/{kind}/artifact",
        task=task,
        data="reviews.csv",
        split=split,
        metrics=_estimates(scores[""], rows),
        primary_metric=primary,
        baselines=baselines,
        verdict=verdict,
        rows=rows,
        limit=None,
        detail=detail(targets, Predictions(model, model), labels),
    )
    return report.as_dict()


def _predictions(kind: str, rows: int, classes: int, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    if kind == "numbers":
        truth = random.uniform(0, 5, rows)
        return (
            truth,
            truth + random.normal(0, 0.7, rows),
            truth * 0.5 + random.normal(1.2, 1.1, rows),
            np.full(rows, 2.5),
        )
    if kind == "several":
        given = (random.random((rows, classes)) < np.linspace(0.12, 0.01, classes)).astype(np.int64)
        noisy = [np.where(random.random(given.shape) < share, 0, given) for share in (0.35, 0.6)]
        model, cheap = (said | (random.random(given.shape) < 0.012).astype(np.int64) for said in noisy)
        return given, model, cheap, np.zeros_like(given)
    right = random.choice(classes, rows, p=random.dirichlet(np.full(classes, 6.0)))

    def guess(share: float) -> np.ndarray:
        near = np.clip(right + random.choice([-1, 1], rows), 0, classes - 1)
        return np.where(random.random(rows) < share, near, right)

    wrong = {"worse": (0.34, 0.27), "few": (0.1, 0.2), "chinese": (0.105, 0.115)}.get(kind, (0.15, 0.21))
    return right, guess(wrong[0]), guess(wrong[1]), np.zeros_like(right)


def _estimates(scores: dict[str, float], rows: int) -> dict[str, Any]:
    reach = 1.0 / math.sqrt(rows)
    return {name: {"value": value, "low": value - reach, "high": value + reach} for name, value in scores.items()}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder of a kind (see KINDS) and returns its path."""
    return lambda kind: write_run(tmp_path / kind, kind)


@pytest.fixture
def hostile_labels() -> Sequence[str]:
    """Labels that would do harm in a page that does not escape."""
    return HOSTILE


if __name__ == "__main__":
    from chainrule.evaluation.report import write_report

    for each in KINDS:
        print(write_report(write_run(Path(sys.argv[1]) / each, each)))
