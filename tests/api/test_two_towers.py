"""Ranking by the cosines of an encoder's vectors, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import RecipeError
from chainrule.evaluation.plain_use import plain_use
from chainrule.inference.predict import load_predictor
from chainrule.inference.towers import Towers
from chainrule.testing.data import searches, tastes, write_json_lines

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = tmp_path_factory.mktemp("searches")
    for seed, (name, count) in enumerate({"train": 80, "validation": 30, "test": 40}.items()):
        write_json_lines(rows / f"{name}.jsonl", searches(count, seed=seed))
    return rows


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tastes(tmp_path_factory.mktemp("tastes"))


def train(model: Path, data: Path, out: Path, /, **more: Any) -> Run:
    settings: dict[str, Any] = {"model": str(model), "task": "ranking", "task.options.form": "two-towers"}
    settings |= {"training.epochs": 4, "training.threads": 1, "training.precision": "float32"}
    settings |= {"training.batch_size": 16, "optimizer.learning_rate": 5e-3, **more}
    return chainrule.train(str(data), out=out, settings=settings)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, data: Path) -> Run:
    return train(tiny_bert, data, tmp_path_factory.mktemp("towers") / "run")


@pytest.fixture(scope="module")
def recommends(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, users: Path) -> Run:
    more = {"training.epochs": 1, "task.options.candidates": 8, "task.options.negatives": 2}
    return train(tiny_bert, users, tmp_path_factory.mktemp("recommends") / "run", **more)


def predicted(run: Run, *arguments: Any, **more: Any) -> list[dict[str, Any]]:
    found = chainrule.predict(run, *arguments, **more)
    assert not isinstance(found, int)
    return found


def test_ranks_what_it_was_shown(tuned: Run, data: Path) -> None:
    report = chainrule.evaluate(tuned, str(data))
    scores = {name: estimate.value for name, estimate in report.metrics.items()}
    assert set(scores) == {"ndcg@10", "mrr", "recall@10", "hit_rate@10", "auc", "coverage@10", "loss"}
    assert scores["ndcg@10"] > 0.9
    assert set(report.baselines) == {"tfidf-cosine"}
    again = chainrule.evaluate(tuned, str(data), split="validation")
    for name, value in tuned.summary["metrics"].items():
        assert again.metrics[name].value == pytest.approx(value, abs=1e-5)
    card = (tuned.path / "artifact" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: sentence-similarity" in card
    assert "items @ query" in card


def test_scores_are_cosines_of_sentence_transformers(tuned: Run, capsys: pytest.CaptureFixture[str]) -> None:
    items = ["a bad room", "a good room it was", "dull"]
    rows = predicted(tuned, text={"query": ["it is"] * 3, "item": items})
    expected = [row["predicted_score"] for row in rows]
    order = np.argsort(-np.array(expected))
    assert [rows[place]["predicted_rank"] for place in order] == [1, 2, 3]
    assert tuned.artifact.manifest.loads_in == ("sentence-transformers", "transformers")
    code = plain_use("ranking", tuned.artifact.manifest.loads_in, repr(str(tuned.path / "artifact")), "", {}, ())
    exec(code.replace('"…")', '"it is")').replace('["…", "…"]', repr(items)), {})
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5)


def test_another_loss_learns_the_same(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    run = train(tiny_bert, data, tmp_path / "run", loss="triplet")
    assert run.summary["metrics"]["ndcg@10"] > 0.75  # 0.64 by chance


@pytest.mark.parametrize("strategy", ["lora", "partial"])
def test_other_strategies_keep_what_was_trained(strategy: str, tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    options = {"lora": {"merge": False}, "partial": {"top": 1}}[strategy]
    more = {"strategy": {"name": strategy, "options": options}, "training.epochs": 2}
    run = train(tiny_bert, data, tmp_path / "run", **more)
    again = chainrule.evaluate(run, str(data), split="validation")
    assert again.metrics["ndcg@10"].value == pytest.approx(run.summary["metrics"]["ndcg@10"], abs=1e-5)
    if strategy == "lora":
        assert "by Chainrule alone" in (run.path / "artifact" / "README.md").read_text(encoding="utf-8")


def test_folds_of_queries(tiny_bert: Path, tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "rows.jsonl", searches(40))
    run = train(tiny_bert, source, tmp_path / "run", **{"training.folds": 2, "training.epochs": 1})
    assert run.summary["cross_validation"]["rows"] == 40


def test_recommends_to_users(recommends: Run, users: Path, tmp_path: Path) -> None:
    report = chainrule.evaluate(recommends, str(users))
    assert set(report.baselines) == {"tfidf-cosine", "popularity", "matrix-factorisation"}
    assert report.detail["candidates"] == 9
    assert set(report.detail["apart"]) <= {"known_users", "new_users", "new_items"}
    rows = predicted(recommends, str(users / "test.csv"))
    assert {row["predicted_rank"] for row in rows} == {1, 2}
    assert chainrule.predict(recommends, str(users / "users.csv"), top=3, out=tmp_path / "best.csv") == 120


def test_a_text_is_read_once(tuned: Run) -> None:
    predictor = load_predictor(tuned.artifact)
    read: list[int] = []
    predictor.forward.model.register_forward_pre_hook(
        lambda model, arguments, inputs: read.append(len(inputs["input_ids"])), with_kwargs=True
    )
    towers = Towers(predictor)
    scores, cut = towers.scores(["it is", "we", "it is"], ["a bad room", "a bad room", "dull"])
    assert sum(read) == 4
    assert not cut.any()
    again, _ = towers.scores(["we", "it is"], ["dull", "a bad room"])
    assert sum(read) == 4
    assert again[1] == pytest.approx(scores[0])
    _, cut = towers.scores(["it is", "we"], ["a room " * 100, "dull"])
    assert cut.tolist() == [True, False]


def test_what_does_not_go_together_is_refused(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'head' does not go together with ranking"):
        train(tiny_bert, data, tmp_path / "a", strategy="head")
    with pytest.raises(RecipeError, match="listnet"):
        train(tiny_bert, data, tmp_path / "b", loss="listnet")
    with pytest.raises(RecipeError, match="options of task 'ranking' are wrong"):
        train(tiny_bert, data, tmp_path / "c", **{"task.options.form": "towers"})
