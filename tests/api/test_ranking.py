"""Ranking from rows to ranked items, with a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.errors import DataError, RecipeError
from chainrule.evaluation.plain_use import plain_use
from chainrule.testing.data import searches, tastes, write_json_lines
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit


def folder_of(rows: Path, counts: dict[str, int]) -> Path:
    for seed, (name, count) in enumerate(counts.items()):
        write_json_lines(rows / f"{name}.jsonl", searches(count, seed=seed))
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("searches"), {"train": 80, "validation": 30, "test": 40})


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tastes(tmp_path_factory.mktemp("tastes"))


def train(model: Path, data: Path, out: Path, /, **more: Any) -> Run:
    settings = {"model": str(model), "task": "ranking", "training.epochs": 2, "training.threads": 1}
    settings |= {"training.batch_size": 8, "optimizer.learning_rate": 5e-3, "training.precision": "float32", **more}
    return chainrule.train(str(data), out=out, settings=settings)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, data: Path) -> Run:
    return train(tiny_bert, data, tmp_path_factory.mktemp("ranking") / "run")


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
    assert scores["recall@10"] == 1  # of four candidates all are among the first ten
    assert set(report.baselines) == {"tfidf-cosine"}
    assert report.verdict.better
    assert report.rows == 40
    told = {found.kind: found.message for found in report.findings}
    assert "40 queries with 4 to 4 candidates each" in told["candidates"]
    page = (tuned.path / "report.html").read_text(encoding="utf-8")
    assert "40 lists of 4 candidates in the mean, 1 of them relevant" in page
    assert '--query "…" --item "…"' in page.replace("&#34;", '"')
    again = chainrule.evaluate(tuned, str(data), split="validation")
    for name, value in tuned.summary["metrics"].items():
        assert again.metrics[name].value == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("loss", ["ranknet", "binary-cross-entropy"])
def test_the_other_losses_learn_the_same(loss: str, tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    run = train(tiny_bert, data, tmp_path / "run", loss=loss)
    assert run.summary["metrics"]["ndcg@10"] > 0.85


def test_files_are_scored_and_ranked_within_their_queries(tuned: Run, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    mixed = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    source = write_json_lines(tmp_path / "new.jsonl", [{"query": row["query"], "doc": row["item"]} for row in mixed])
    assert chainrule.predict(tuned, str(source), out=tmp_path / "out.jsonl", fields={"item": "doc"}) == len(rows)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["doc"] for row in found] == [row["item"] for row in mixed]
    by_query: dict[str, list[tuple[int, float]]] = {}
    for row in found:
        by_query.setdefault(row["query"], []).append((row["predicted_rank"], row["predicted_score"]))
    for places in by_query.values():
        assert [rank for rank, _ in sorted(places)] == [1, 2, 3, 4]
        assert [score for _, score in sorted(places)] == sorted((score for _, score in places), reverse=True)


def test_texts_on_the_command_line(tuned: Run, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"query": ["it is", "it is", "we"], "item": ["a bad room", "a good room", "dull"]}
    found = predicted(tuned, text=texts)
    assert [row["predicted_rank"] for row in found] == [2, 1, 1]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["predict", str(tuned.path), "--query", "it is", "--item", "a good room"])
    score, rank = capsys.readouterr().out.split()
    assert float(score) == pytest.approx(found[1]["predicted_score"], abs=1e-4)
    assert rank == "1"
    with pytest.raises(DataError, match="do not fit this model") as caught:
        chainrule.predict(tuned, text="it is")
    assert caught.value.problems[0].todo == "This model was trained on queries with items."
    with pytest.raises(RecipeError, match="no catalogue to choose from"):
        chainrule.predict(tuned, "new.csv", top=3)


def test_plain_transformers_gives_the_same_scores(tuned: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, items = tuned.path / "artifact", ["a bad room", "a good room it was"]
    expected = [row["predicted_score"] for row in predicted(tuned, text={"query": ["it is"] * 2, "item": items})]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.id2label == {0: "relevance"}
    with torch.inference_mode():
        logits = model(**tokenizer(["it is"] * 2, items, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    assert logits == pytest.approx(expected, abs=1e-5)
    code = plain_use("ranking", ("transformers",), repr(str(folder)), "", {}, ())
    exec(code.replace('"…", ["…", "…"]', f'"it is", {items}'), {})
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-ranking" in card
    assert "how relevant each item is" in card


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_other_families(family: str, data: Path, tmp_path: Path) -> None:
    run = train(tiny_model(tmp_path / "model", family), data, tmp_path / "run")
    assert run.summary["metrics"]["ndcg@10"] > 0.6


@pytest.mark.parametrize("strategy", ["lora", "partial", "prompt"])
def test_other_strategies_keep_what_was_trained(strategy: str, tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    run = train(tiny_bert, data, tmp_path / "run", **{"strategy": strategy, "training.epochs": 1})
    again = chainrule.evaluate(run, str(data), split="validation")
    assert again.metrics["ndcg@10"].value == pytest.approx(run.summary["metrics"]["ndcg@10"], abs=1e-5)


def test_an_lstm_reads_lists_too(data: Path, tmp_path: Path) -> None:
    run = chainrule.train(
        str(data), out=tmp_path / "run", settings={"model": "lstm", "task": "ranking", "training.steps": 3}
    )
    assert 0 <= run.summary["metrics"]["ndcg@10"] <= 1


def test_folds_of_queries(tiny_bert: Path, tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "rows.jsonl", searches(40))
    run = train(tiny_bert, source, tmp_path / "run", **{"training.folds": 2, "training.epochs": 1})
    assert run.summary["cross_validation"]["rows"] == 40
    assert run.summary["cross_validation"]["metrics"].keys() >= {"ndcg@10", "coverage@10"}


def test_recommends_to_users(recommends: Run, users: Path, tmp_path: Path) -> None:
    assert recommends.artifact.manifest.inputs == ("query", "item", "user")
    assert recommends.artifact.manifest.fields["timestamp"] == "timestamp"
    report = chainrule.evaluate(recommends, str(users))
    assert set(report.baselines) == {"tfidf-cosine", "popularity", "matrix-factorisation"}
    assert report.detail["candidates"] == 9
    told = {found.kind: found.message for found in report.findings}
    assert "up to 8 items, drawn by task.options.seed" in told["candidates"]
    rows = predicted(recommends, str(users / "test.csv"))
    assert len(rows) == 80
    assert {row["predicted_rank"] for row in rows} == {1, 2}
    assert chainrule.predict(recommends, str(users / "users.csv"), top=3, out=tmp_path / "best.csv") == 120
    with (tmp_path / "best.csv").open(encoding="utf-8", newline="") as file:
        best = list(csv.DictReader(file))
    names = ["user_id", "predicted_item", "predicted_rank", "predicted_score", "item_text"]
    assert list(best[0]) == names
    assert [row["predicted_rank"] for row in best[:4]] == ["1", "2", "3", "1"]
    seen = {tuple(line.split(",")[:2]) for split in ("train", "validation", "test") for line in lines(users, split)}
    assert not seen & {(row["user_id"], row["predicted_item"]) for row in best}
    scores = [float(row["predicted_score"]) for row in best[:3]]
    assert scores == sorted(scores, reverse=True)


def lines(folder: Path, split: str) -> list[str]:
    return (folder / f"{split}.csv").read_text(encoding="utf-8").splitlines()[1:]


def test_recommending_says_what_is_missing(recommends: Run, users: Path, tmp_path: Path) -> None:
    alone = tmp_path / "test.csv"
    alone.write_text((users / "test.csv").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(DataError, match="What users liked is not known") as caught:
        chainrule.predict(recommends, str(alone))
    assert "a train file with the columns user_id, item_id, rating, timestamp" in str(caught.value.problems[0])
    with pytest.raises(DataError, match="names no users") as caught:
        chainrule.predict(recommends, str(users / "items.csv"), top=3)
    assert "--column user=COLUMN" in caught.value.problems[0].todo
    with pytest.raises(RecipeError, match="number of best items"):
        chainrule.predict(recommends, str(users / "users.csv"), top=0)
    with pytest.raises(RecipeError, match="chosen for the users of a file"):
        chainrule.predict(recommends, text={"query": ["a"], "item": ["b"]}, top=1)
    unknown = users.parent / "tastes-unknown"
    unknown.mkdir()
    for name in ("train", "items"):
        (unknown / f"{name}.csv").write_text((users / f"{name}.csv").read_text(encoding="utf-8"), encoding="utf-8")
    (unknown / "new.csv").write_text("user_id,item_id\nu1,i1\nu1,i77\n", encoding="utf-8")
    with pytest.raises(DataError, match="items without a text") as caught:
        chainrule.predict(recommends, str(unknown / "new.csv"))
    assert "row 2, line 3" in str(caught.value.problems[0])


def test_what_does_not_go_together_is_refused(
    tiny_bert: Path, recommends: Run, data: Path, users: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="'contrastive' does not go together with ranking"):
        train(tiny_bert, data, tmp_path / "a", strategy="contrastive")
    with pytest.raises(RecipeError, match="R-Drop cannot be used here"):
        train(tiny_bert, data, tmp_path / "b", regularisers=["r-drop"])
    with pytest.raises(RecipeError, match="The options of task 'ranking' are wrong"):
        train(tiny_bert, data, tmp_path / "c", **{"task.options.negatives": 0})
    with pytest.raises(DataError, match="The rows are not such as the model was trained on"):
        chainrule.evaluate(recommends, str(data))
    with pytest.raises(DataError, match="cannot be dealt out to folds"):
        train(tiny_bert, users, tmp_path / "d", **{"training.folds": 2})
