"""Chinese questions of CMRC 2018: what is read, what is scored, character by character, and a few steps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule
from chainrule.core.recipe import Data
from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.data.load import Split, load
from chainrule.metrics.answers import row_scores
from chainrule.models.tokenizer import make_tokenizer
from chainrule.tasks.question_answering import TASK
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def rows(shared_data: Callable[[str], Path]) -> Split:
    dataset = load(str(shared_data("cmrc2018")), Data(), TASK)
    assert dataset.report.ok
    assert {name: len(part) for name, part in dataset.splits.items()} == {
        "train": 2216,
        "validation": 333,
        "test": 1000,
    }
    return dataset.splits["validation"]


def characters(text: str) -> list[str]:
    """Letters and numbers, each by itself; here no text has a Latin word."""
    return [character for character in text if character.isalnum()]


def overlap(said: str, wanted: str) -> float:
    first, second = characters(said), characters(wanted)
    common = (Counter(first) & Counter(second)).total()
    return 2 * common / (len(first) + len(second))


def test_a_right_answer_scores_one_and_half_of_it_by_its_characters(rows: Split) -> None:
    answers = [list(texts) for texts in rows.targets.texts(rows.targets.spans)]
    assert max(map(len, answers)) == 2, "two people have answered, and differ"
    judged = 0
    for right in answers:
        for text in right:
            assert row_scores(right, text) == (1.0, 1.0)
        longest = max(right, key=len)
        half = longest[: max(1, len(longest) // 2)]
        plain = all("\u4e00" <= c <= "\u9fff" for text in right for c in text)
        if plain and len(right) and half not in right:
            exact, f1 = row_scores(right, half)
            assert exact == 0
            assert f1 == pytest.approx(max(overlap(half, text) for text in right))
            judged += 1
    assert judged > 100


def test_predictions_of_the_references_are_perfect(rows: Split) -> None:
    spans = rows.targets.spans
    firsts = spans.offsets[:-1]
    each, sure = np.arange(len(rows) + 1), np.ones(len(rows), np.float32)
    said = Spans(each, spans.bounds[firsts], sure)
    scores = TASK.measure(rows.targets, Predictions(said, sure))
    assert scores["exact_match"] == scores["f1"] == 1.0
    shorter = spans.bounds[firsts].copy()
    shorter[:, 1] = np.maximum(shorter[:, 0] + 1, shorter[:, 1] - 1)
    worse = TASK.measure(rows.targets, Predictions(Spans(each, shorter, sure), sure))
    assert worse["exact_match"] < 0.5 < worse["f1"] < 1


def test_a_tiny_model_reads_them_in_windows(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    source, folder = shared_data("cmrc2018"), tmp_path / "rows"
    folder.mkdir()
    few: dict[str, list[dict[str, Any]]] = {}
    for name, count in (("train", 24), ("validation", 8), ("test", 8)):
        kept = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
        few[name] = [json.loads(line) for line in kept]
    model = tiny_model(tmp_path / "model", positions=128)
    texts = [row[name] for row in few["train"] for name in ("context", "question")]
    tokenizer = make_tokenizer(texts, "character", size=180, min_count=1, lowercase=False)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(model)
    report = chainrule.check(str(folder), task="question-answering", model=str(model))
    assert report.ok, report.problems[:3]
    kinds = {found.kind for found in report.findings}
    assert "windowed" in kinds
    assert "too-long" not in kinds
    settings = {"training.steps": 4, "training.batch_size": 4, "training.precision": "float32", "training.threads": 1}
    run = chainrule.train(
        str(folder), out=tmp_path / "run", task="question-answering", model=str(model), settings=settings
    )
    judged = chainrule.evaluate(run, str(folder))
    assert judged.rows == 8
    assert set(judged.metrics) >= {"f1", "exact_match", "loss"}
    first = few["test"][0]
    predicted: Any = chainrule.predict(run, text={"question": [first["question"]], "context": [first["context"]]})
    (said,) = predicted
    begin = said["predicted_start"]
    assert first["context"][begin : begin + len(said["predicted_answer"])] == said["predicted_answer"]


def test_what_is_wrong_with_a_real_row_is_told(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    lines = (shared_data("cmrc2018") / "train.jsonl").read_text(encoding="utf-8").splitlines()[:30]
    rows = [json.loads(line) for line in lines]
    answers = rows[4]["answers"]
    starts = answers["answer_start"] if isinstance(answers, dict) else [each["answer_start"] for each in answers]
    moved = [start + 1 for start in starts]
    if isinstance(answers, dict):
        answers["answer_start"] = moved
    else:
        for each, start in zip(answers, moved, strict=True):
            each["answer_start"] = start
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    report = chainrule.check(str(file), task="question-answering")
    assert not report.ok
    assert {problem.where.row for problem in report.problems} == {5}
