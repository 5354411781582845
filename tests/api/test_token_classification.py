"""Token classification from rows to entities, with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DataError, RecipeError
from chainrule.testing.data import entities, write_json_lines
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit

PLAIN_TRANSFORMERS = """
import json, sys
from transformers import pipeline
tagger = pipeline("token-classification", sys.argv[1], aggregation_strategy="first")
assert "chainrule" not in sys.modules
print(json.dumps([[item["start"], item["end"], item["entity_group"]] for item in tagger(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entities")
    for seed, (name, count) in enumerate({"train": 160, "validation": 60, "test": 60}.items()):
        write_json_lines(folder / f"{name}.jsonl", entities(count, seed=seed))
    return folder


def train(model: Path, data: Path, out: Path, /, **more: Any) -> Run:
    settings = {"model": str(model), "task": "token-classification", "training.epochs": 6, "training.threads": 1}
    settings |= {"training.batch_size": 8, "optimizer.learning_rate": 5e-3, "training.precision": "float32", **more}
    return chainrule.train(str(data), out=out, settings=settings)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, rows: Path) -> Run:
    return train(tiny_bert, rows, tmp_path_factory.mktemp("ner") / "run")


def found(rows: list[dict[str, Any]] | int) -> list[list[tuple[Any, ...]]]:
    assert not isinstance(rows, int)
    keys = ("start", "end", "label", "text")
    return [[tuple(entity[key] for key in keys) for entity in row["predicted_entities"]] for row in rows]


def test_finds_what_it_was_shown(tuned: Run, rows: Path) -> None:
    assert set(tuned.summary["metrics"]) == {"f1", "precision", "recall", "macro_f1", "loss"}
    report = chainrule.evaluate(tuned, str(rows))
    assert report.split == "test"
    assert report.metrics["f1"].value > 0.9
    assert set(report.baselines) == {"word-tags"}
    assert report.verdict.baseline == "word-tags"
    assert "the most frequent tag of each word" in report.verdict.text
    assert [item["label"] for item in report.detail["per_class"]] == ["BLAME", "PRAISE"]


def test_reads_texts_and_words_alike(tuned: Run) -> None:
    text = "the good  film was awful and cold"
    expected = [(4, 8, "PRAISE", "good"), (19, 24, "BLAME", "awful"), (29, 33, "BLAME", "cold")]
    assert found(chainrule.predict(tuned, text=text)) == [expected]
    words = text.split()
    rows = chainrule.predict(tuned, pa.Table.from_pylist([{"tokens": words}]))
    assert not isinstance(rows, int)
    (row,) = rows
    assert found([row]) == [[(1, 2, "PRAISE", "good"), (4, 5, "BLAME", "awful"), (6, 7, "BLAME", "cold")]]
    assert row["predicted_tags"] == ["O", "B-PRAISE", "O", "O", "B-BLAME", "O", "B-BLAME"]
    assert all(0.5 < entity["score"] <= 1 for entity in row["predicted_entities"])


def test_long_rows_are_read_in_windows_and_nothing_is_lost(tuned: Run) -> None:
    text = " ".join(["the film was good and"] * 40)  # 200 words, where the model reads 62 at once
    (entities,) = found(chainrule.predict(tuned, text=text))
    assert [start for start, *_ in entities] == [13 + 22 * place for place in range(40)]


def test_files_are_labelled_with_entities_beside_their_columns(tuned: Run, tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "new.jsonl", [{"id": 7, "text": "a good room"}, {"id": 8, "text": "it is"}])
    assert chainrule.predict(tuned, str(source), out=tmp_path / "out.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [7, 8]
    assert found(rows) == [[(2, 6, "PRAISE", "good")], []]
    chainrule.predict(tuned, str(source), out=tmp_path / "out.csv")
    cells = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[1]
    assert '""label"": ""PRAISE""' in cells


def test_plain_transformers_finds_the_same(tuned: Run) -> None:
    text = "the good film was awful and cold"
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, str(tuned.path / "artifact"), text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[4, 8, "PRAISE"], [18, 23, "BLAME"], [28, 32, "BLAME"]]
    assert tuned.artifact.manifest.loads_in == ("transformers",)
    config = json.loads((tuned.path / "artifact" / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == ["O", "B-BLAME", "I-BLAME", "B-PRAISE", "I-PRAISE"]


@pytest.mark.parametrize("family", ["roberta", "distilbert", "llama"])
def test_other_families_learn(family: str, rows: Path, tmp_path: Path) -> None:
    run = train(tiny_model(tmp_path / "model", family), rows, tmp_path / "run", **{"training.epochs": 5})
    assert run.summary["metrics"]["f1"] > 0.5


@pytest.mark.parametrize(("strategy", "rate"), [("partial", 1e-2), ("lora", 5e-3), ("gradual", 5e-3)], ids=str)
def test_strategies_go_together_with_it(
    strategy: str, rate: float, tiny_bert: Path, rows: Path, tmp_path: Path
) -> None:
    run = train(tiny_bert, rows, tmp_path / "run", **{"strategy": strategy, "optimizer.learning_rate": rate})
    assert run.summary["metrics"]["f1"] > 0.5
    text = "the good film was awful"
    assert len(found(chainrule.predict(run, text=text))[0]) == 2


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_chain_of_tags_learns_and_is_saved(strategy: str, tiny_bert: Path, rows: Path, tmp_path: Path) -> None:
    run = train(tiny_bert, rows, tmp_path / "run", **{"loss": "crf", "strategy": strategy})
    assert run.summary["metrics"]["f1"] > 0.7
    assert run.artifact.manifest.loads_in == ("chainrule",)
    assert chainrule.read_recipe(run.path / "resolved.yaml").structure.head == "crf"
    report = chainrule.evaluate(run, str(rows), split="validation")
    assert report.metrics["f1"].value == pytest.approx(run.summary["metrics"]["f1"])
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], rel=1e-4)


@pytest.mark.parametrize("loss", ["cross-entropy", "crf"])
def test_a_model_without_pretrained_weights_learns(loss: str, rows: Path, tmp_path: Path) -> None:
    settings = {"task": "token-classification", "model": "lstm", "loss": loss, "training.threads": 1}
    settings |= {"training.epochs": 8, "training.batch_size": 8, "optimizer.learning_rate": 1e-2}
    run = chainrule.train(str(rows), out=tmp_path / "run", settings=settings)
    assert run.summary["metrics"]["f1"] > 0.9
    assert run.artifact.manifest.loads_in == ("chainrule",)
    assert found(chainrule.predict(run, text="the good film was awful")) == [
        [(4, 8, "PRAISE", "good"), (18, 23, "BLAME", "awful")]
    ]


def test_a_chain_needs_its_loss(tiny_bert: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected the head crf with the loss crf, and only there"):
        train(tiny_bert, rows, tmp_path / "a", **{"structure.head": "crf"})


def test_check_shows_which_tokens_are_learned(tiny_bert: Path, rows: Path) -> None:
    report = chainrule.check(str(rows), task="token-classification", model=str(tiny_bert), shown=2)
    assert [example.row for example in report.examples] == [1, 2]
    first = json.loads((rows / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert report.examples[0].text.count("⟦") == len(first["tokens"])
    assert report.splits["train"].labels.keys() == {"BLAME", "PRAISE"}
    long = chainrule.check(str(rows), task="token-classification", model=str(tiny_bert), max_length=8)
    assert {finding.kind for finding in long.findings} >= {"windowed"}
    assert "too-long" not in {finding.kind for finding in long.findings}


def test_a_run_can_be_made_again(tuned: Run, tmp_path: Path) -> None:
    again = chainrule.reproduce(tuned, out=tmp_path / "again")
    assert again.same_weights


def test_what_does_not_go_together_is_refused_before_training(tiny_bert: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="A classifier of tokens has no pooling to replace"):
        train(tiny_bert, rows, tmp_path / "a", **{"structure.pooling": "mean"})
    with pytest.raises(RecipeError, match="'contrastive' does not go together with token-classification"):
        train(tiny_bert, rows, tmp_path / "b", **{"strategy": "contrastive"})
    bad = write_json_lines(tmp_path / "bad.jsonl", [{"tokens": ["a"], "tags": ["O", "O"]}] * 2)
    with pytest.raises(DataError, match="have tags or spans that do not fit their text"):
        train(tiny_bert, bad, tmp_path / "c")
