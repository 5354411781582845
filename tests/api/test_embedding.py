"""Vectors from rows to a model that others load, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DataError, ModelError, OutputError, RecipeError
from chainrule.testing.data import BAD, GOOD, PLAIN, sentences, write_csv, write_json_lines
from chainrule.testing.models import tiny_model
from chainrule.training.companions import COMPANIONS

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("bert") / "bert")


def pair_rows() -> list[dict[str, str]]:
    """Anchors have one word in common with nothing but their meaning: each good word belongs to one bad one."""
    made = []
    for number, (good, bad) in enumerate(zip(GOOD, BAD, strict=True)):
        for place in range(12):
            first, second = PLAIN[place], PLAIN[(place + number) % len(PLAIN)]
            made.append({"question": f"{first} {good} {second}", "answer": f"{bad} {first} {second} {bad}"})
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pair_rows())


def train(model: Path, data: Path, out: Path, /, **more: Any) -> Run:
    settings = {"model": str(model), "task": "embedding", "training.epochs": 8, "training.threads": 1}
    settings |= {"training.batch_size": 16, "optimizer.learning_rate": 5e-3, "training.precision": "float32", **more}
    return chainrule.train(str(data), out=out, settings=settings)


@pytest.fixture(scope="module")
def run(bert: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(bert, pairs, tmp_path_factory.mktemp("runs") / "run")


def test_learns_what_belongs_together(run: Run) -> None:
    metrics = run.summary["metrics"]
    assert set(metrics) == {"ndcg@10", "mrr@10", "map", "recall@1", "recall@5", "recall@10", "loss"}
    validation = json.loads((run.path / "evaluations" / "validation.json").read_text())
    assert set(validation["baselines"]) == {"untuned", "tfidf-cosine"}
    assert metrics["ndcg@10"] > validation["baselines"]["untuned"]["ndcg@10"]["value"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "NDCG@10" in page
    assert "among the first ten" in page


def test_evaluation_is_what_training_said(run: Run, pairs: Path) -> None:
    report = chainrule.evaluate(run, str(pairs), split="validation")
    for name, value in run.summary["metrics"].items():
        assert report.metrics[name].value == pytest.approx(value, rel=1e-3), name
    validation = json.loads((run.path / "evaluations" / "validation.json").read_text())
    for baseline, scores in validation["baselines"].items():
        assert report.baselines[baseline]["map"].value == pytest.approx(scores["map"]["value"], rel=1e-3), baseline
    estimate = report.metrics["ndcg@10"]
    assert estimate.low <= estimate.value <= estimate.high


def test_what_was_trained_on_pairs_is_judged_on_labelled_texts_too(run: Run, tmp_path: Path) -> None:
    report = chainrule.evaluate(run, str(write_csv(tmp_path / "rows.csv", sentences(40))))
    assert report.rows == 40
    assert 0 < report.metrics["map"].value <= 1


def test_vectors_of_texts_and_files(run: Run, pairs: Path, tmp_path: Path) -> None:
    texts = [row["question"] for row in pair_rows()]
    rows = chainrule.predict(run, text=texts[:3])
    assert isinstance(rows, list)
    vectors = np.array([row["predicted_vector"] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    count = chainrule.predict(run, str(pairs), out=tmp_path / "all.jsonl")
    assert count == len(texts)
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert lines[0]["question"] == texts[0]
    np.testing.assert_allclose([line["predicted_vector"] for line in lines[:3]], vectors, atol=1e-6)
    chainrule.predict(run, str(pairs), out=tmp_path / "all.npy")
    chainrule.predict(run, str(pairs), out=tmp_path / "all.safetensors")
    found = np.load(tmp_path / "all.npy")
    assert (found.shape, found.dtype) == ((count, 32), np.float32)
    assert np.array_equal(load_file(tmp_path / "all.safetensors")["vectors"], found)
    assert np.array_equal(found, np.array([line["predicted_vector"] for line in lines], np.float32))
    others = chainrule.predict(run, str(pairs), fields={"text": "answer"})
    assert isinstance(others, list)
    assert not np.allclose(others[0]["predicted_vector"], vectors[0], atol=1e-3)
    with pytest.raises(OutputError, match=r"\.csv, \.tsv or \.jsonl, or for vectors alone in \.npy or \.safetensors"):
        chainrule.predict(run, str(pairs), out=tmp_path / "all.bin")
    with pytest.raises(DataError, match="expected the input text, got anchor"):
        chainrule.predict(run, text={"anchor": ["a"]})


def test_sentence_transformers_makes_the_same_vectors(run: Run) -> None:
    library = pytest.importorskip("sentence_transformers")
    manifest = json.loads((run.path / "artifact" / "chainrule.json").read_text())
    assert manifest["loads_in"] == ["sentence-transformers", "transformers"]
    texts = ["a very good film", "cold"]
    ours = [row["predicted_vector"] for row in chainrule.predict(run, text=texts)]  # type: ignore[union-attr]
    theirs = library.SentenceTransformer(str(run.path / "artifact"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, ours, atol=2e-6)
    card = (run.path / "artifact" / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("FOLDER")' in card


def test_negatives_are_kept_and_the_run_can_be_made_again(bert: Path, pairs: Path, tmp_path: Path) -> None:
    more = {"task.options.hard_negatives": 2, "training.epochs": 1, "training.micro_batch_tokens": 200}
    run = train(bert, pairs, tmp_path / "run", **more)
    found = load_file(run.path / COMPANIONS)["rows"]
    assert found.shape[1] == 2
    again = chainrule.reproduce(run, out=tmp_path / "again")
    assert again.same
    assert np.array_equal(load_file(tmp_path / "again" / COMPANIONS)["rows"], found)
    (run.path / COMPANIONS).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="companions"):
        chainrule.reproduce(run, out=tmp_path / "once-more")


def test_labelled_texts_and_their_pooling(bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", sentences(200))
    run = train(bert, data, tmp_path / "run", **{"training.epochs": 4, "structure.pooling": "max"})
    validation = json.loads((run.path / "evaluations" / "validation.json").read_text())
    assert run.summary["metrics"]["map"] > validation["baselines"]["untuned"]["map"]["value"]
    report = chainrule.evaluate(run, str(data), split="validation")
    assert report.metrics["map"].value == pytest.approx(run.summary["metrics"]["map"], rel=1e-3)
    with pytest.raises(RecipeError, match="get no negatives"):
        train(bert, data, tmp_path / "other", **{"task.options.hard_negatives": 1})
    assert not (tmp_path / "other").exists()


def test_another_loss_becomes_small(bert: Path, pairs: Path, tmp_path: Path) -> None:
    more = {"loss": "supervised-contrastive", "training.epochs": 6, "optimizer.learning_rate": 2e-3}
    run = train(bert, pairs, tmp_path / "run", **more)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize("strategy", ["lora", "partial"])
def test_scored_pairs(strategy: str, bert: Path, tmp_path: Path) -> None:
    first, second = sentences(100), sentences(100, seed=1)
    rows = [
        {"sentence1": a["text"], "sentence2": b["text"], "score": "5" if a["label"] == b["label"] else "0.5"}
        for a, b in zip(first, second, strict=True)
    ]
    data = write_csv(tmp_path / "rows.csv", rows)
    run = train(bert, data, tmp_path / "run", task="sentence-similarity", strategy=strategy, **{"training.epochs": 3})
    metrics = run.summary["metrics"]
    assert set(metrics) == {"spearman", "pearson", "loss"}
    report = chainrule.evaluate(run, str(data), split="validation")
    assert report.metrics["spearman"].value == pytest.approx(metrics["spearman"], abs=2e-3)
    assert set(report.baselines) == {"untuned", "tfidf-cosine"}
    assert chainrule.predict(run, text="good")


def test_adapters_alone_load_here_alone(bert: Path, pairs: Path, tmp_path: Path) -> None:
    more = {"strategy": "lora", "strategy.options.merge": False, "training.epochs": 1}
    run = train(bert, pairs, tmp_path / "run", **more)
    manifest = json.loads((run.path / "artifact" / "chainrule.json").read_text())
    assert manifest["loads_in"] == ["chainrule"]
    report = chainrule.evaluate(run, str(pairs), split="validation")
    assert report.metrics["map"].value == pytest.approx(run.summary["metrics"]["map"], abs=2e-3)


@pytest.mark.parametrize("strategy", ["head", "gradual", "prompt", "contrastive"])
def test_strategies_that_need_a_head_are_refused(strategy: str, bert: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"The strategy '{strategy}' does not go together with embedding"):
        train(bert, pairs, tmp_path / "run", strategy=strategy)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"strategy": "auto"}, "expected a task whose rows are learned one by one, got embedding"),
        ({"regularisers": ["fgm"]}, "expected a task whose rows have losses of their own"),
        ({"regularisers": ["r-drop"]}, "got a task without these"),
        ({"loss.options.dimensions": [32, 64]}, "expected dimensions from 1 to 32, got 32, 64"),
        ({"model": "lstm"}, "expected a task with a few numbers a row or a word, got embedding"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_run_begins(
    more: dict[str, Any], told: str, bert: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=told):
        train(bert, pairs, tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_folds_are_refused(bert: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="The task 'embedding' cannot be cross-validated"):
        train(bert, pairs, tmp_path / "run", **{"training.folds": 3})
