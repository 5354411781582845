"""Texts written of others, from rows to verdict: a reversal that is learned from nothing, and plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DataError, ModelError, RecipeError
from chainrule.testing.data import reversals, write_json_lines
from chainrule.testing.models import tiny_chat_model, tiny_encoder_decoder

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {
    "training.epochs": 8,
    "training.batch_size": 32,
    "training.precision": "float32",
    "optimizer.learning_rate": 3e-3,
    "task.options.max_new_tokens": 8,
}
PLAIN = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
for text in sys.argv[2:]:
    inputs = tokenizer(text, truncation=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8)
    print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json_lines(tmp_path_factory.mktemp("rows") / "reversed.jsonl", reversals(1200, words=3))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_decoder(tmp_path_factory.mktemp("bart"), "bart")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_decoder(tmp_path_factory.mktemp("t5"), "t5")


@pytest.fixture(scope="module")
def run(rows: Path, bart: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "bart"
    return chainrule.train(rows, out=out, task="seq2seq", model=str(bart), settings=SETTINGS)


def few(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_json_lines(tmp_path / "few.jsonl", rows)


def test_a_reversal_is_learned_from_nothing(run: Run) -> None:
    assert run.summary["metrics"]["loss"] < 0.1
    judged = json.loads((run.path / "evaluations" / "validation.json").read_text())
    assert judged["metrics"]["exact_match"]["value"] > 0.9
    assert judged["metrics"]["stop_rate"]["value"] == 1.0
    assert judged["primary_metric"] == "rougeL"
    assert judged["verdict"]["baseline"] in ("lead-1", "copy")
    assert judged["verdict"]["better"]
    assert yaml.safe_load((run.path / "resolved.yaml").read_text())["task"]["options"]["form"] == "encoder-decoder"


def test_t5_with_adapters_learns_too(rows: Path, t5: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "strategy": "lora", "strategy.options.merge": False, "optimizer.learning_rate": 2e-2}
    settings["training.epochs"] = 4
    run = chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(t5), settings=settings)
    config = json.loads((run.artifact.path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert run.summary["metrics"]["loss"] < 4.0, "the untuned model's is above 5"
    report = chainrule.evaluate(run)
    assert report.metrics["loss"].high < report.baselines["untuned"]["loss"].low
    assert chainrule.predict(run, text=["good film"])[0]["predicted_text"]  # type: ignore[index]


def test_evaluation_writes_for_some_rows_and_shows_a_few(run: Run) -> None:
    report = chainrule.evaluate(run)
    told = report.detail["written"]
    assert told["rows"] == 64
    assert told["of"] == report.rows > 64
    assert set(report.baselines) == {"untuned", "lead-1", "copy"}
    assert "stop_rate" not in report.baselines["copy"]
    assert report.baselines["copy"]["rouge1"].value == 1.0
    assert report.verdict.better
    assert report.detail["verdict"]["rows"] == 64
    first = told["examples"][0]
    assert first["references"] == [" ".join(reversed(first["source"].split()))]
    assert chainrule.evaluate(run).detail["written"] == told, "the same rows each time"
    page = (run.path / "report.html").read_text()
    assert all(text in page for text in ("What it writes", "64 of", first["written"], "照抄首句"))


def test_plain_transformers_writes_the_same(run: Run) -> None:
    texts = ["good bad", "warm cold silly", "lovely dull", "great great great"]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(run.artifact.path), *texts], capture_output=True, text=True, check=True
    )
    predicted: Any = chainrule.predict(run, text=texts, max_new_tokens=8)
    assert [row["predicted_text"] for row in predicted] == done.stdout.splitlines()
    assert "AutoModelForSeq2SeqLM" in (run.artifact.path / "README.md").read_text()


def test_beams_and_drawing(run: Run) -> None:
    texts = ["good bad", "warm cold silly"]
    beams: Any = chainrule.predict(run, text=texts, beams=3)
    assert [row["predicted_text"] for row in beams] == ["bad good", "silly cold warm"]
    hot: Any = [
        [row["predicted_text"] for row in chainrule.predict(run, text=texts, temperature=20.0, seed=seed)]  # type: ignore[union-attr]
        for seed in (1, 1, 2)
    ]
    assert hot[0] == hot[1] != hot[2]
    sure: Any = chainrule.predict(run, text=texts, temperature=20.0, top_p=1e-6)
    assert sure == beams, "only the likeliest token is left to draw"


def test_files_keep_their_columns(run: Run, tmp_path: Path) -> None:
    source = few(tmp_path, [{"id": 1, "source": "good bad"}, {"id": 2, "source": "cold " * 80}])
    assert chainrule.predict(run, source, out=tmp_path / "out.jsonl", max_new_tokens=8) == 2
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first == {"id": 1, "source": "good bad", "predicted_text": "bad good", "predicted_finished": True}


def test_a_prompted_decoder_learns_the_same_task(rows: Path, tmp_path: Path) -> None:
    model = tiny_chat_model(tmp_path / "llama")
    settings = {**SETTINGS, "task.options.instruction": "we had"}
    run = chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(model), settings=settings)
    judged = json.loads((run.path / "evaluations" / "validation.json").read_text())
    assert judged["metrics"]["exact_match"]["value"] > 0.5
    assert chainrule.predict(run, text="good bad")[0]["predicted_finished"]  # type: ignore[index]
    card = (run.artifact.path / "README.md").read_text()
    assert '"we had\\n\\n…"' in card
    assert json.loads((run.path / "check.json").read_text())["examples"][0]["text"].startswith("user [UNK] we had")


def test_nothing_is_written_where_none_is_asked_for(rows: Path, t5: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "training.steps": 2, "task.options.generated": 0}
    run = chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(t5), settings=settings)
    report = chainrule.evaluate(run)
    assert set(report.metrics) == {"token_accuracy", "loss", "perplexity"}
    assert report.primary_metric == "loss"
    assert report.verdict.baseline == "untuned"
    assert "written" not in report.detail


def test_several_references_are_all_used(run: Run, tmp_path: Path) -> None:
    rows = [
        {"source": f"good {word}", "target": "dull", "references": ["dull", f"{word} good"]}
        for word in ("bad", "warm", "cold", "silly", "broken", "clever")
    ]
    report = chainrule.evaluate(run, few(tmp_path, rows))
    assert report.metrics["exact_match"].value > 0.8
    assert report.detail["written"]["examples"][0]["references"][0] == "dull"


def test_folds_are_refused(rows: Path, t5: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be cross-validated"):
        chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(t5), settings={"training.folds": 2})


@pytest.mark.parametrize(("strategy", "why"), [("head", "no fresh head"), ("prompt", "before what the encoder reads")])
def test_strategies_that_do_not_fit_are_refused(rows: Path, t5: Path, tmp_path: Path, strategy: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(t5), strategy=strategy)


def test_layers_of_two_stacks_are_not_changed(rows: Path, t5: Path, tmp_path: Path) -> None:
    settings = {"structure.drop_layers": [0]}
    with pytest.raises(RecipeError, match="which has two"):
        chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(t5), settings=settings)


def test_a_form_that_the_model_has_not_is_refused(rows: Path, t5: Path, tmp_path: Path) -> None:
    settings = {"task.options.form": "decoder"}
    with pytest.raises((ModelError, RecipeError)):
        chainrule.train(rows, out=tmp_path / "run", task="seq2seq", model=str(t5), settings=settings)


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"source": "", "target": "good"},
        {"source": "good", "target": " "},
        {"source": "good bad", "target": None},
        {"source": "bad", "target": ["fine", ""]},
        *reversals(20),
    ]
    report = chainrule.check(few(tmp_path, rows), task="seq2seq")
    assert {(problem.where.row, problem.expected, problem.got) for problem in report.problems} == {
        (1, "a text", "an empty cell"),
        (2, "a text to write", "nothing"),
        (3, "a text to write", "nothing"),
        (4, "a text to write", "an empty text among 2"),
    }
    assert {found.kind for found in report.findings if found.severity == "error"} == {"empty-text", "no-target"}
    with pytest.raises(DataError, match="have no target to learn from"):
        chainrule.train(few(tmp_path, rows), out=tmp_path / "run", task="seq2seq")


def test_what_is_worth_knowing_is_told(t5: Path, tmp_path: Path) -> None:
    some: list[dict[str, Any]] = [
        {"source": "good bad", "target": "good bad"},
        {"source": "cold", "target": "warm " * 9},
    ]
    some += [{"source": "dull", "target": ["dull", "cold"]}, *reversals(40)]
    report = chainrule.check(few(tmp_path, some), task="seq2seq", model=str(t5), max_length=8)
    told = {found.kind: found for found in report.findings}
    assert told["same-as-source"].message.endswith("a target that is the source.")
    assert "several targets" in told["several-targets"].message
    assert told["cut-target"].message.endswith("a target that is cut to fit 8 tokens.")
    assert told["cut-target"].severity == "warning"
    assert report.examples[0].text.count("⟦") == 1
