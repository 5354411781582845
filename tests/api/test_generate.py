"""Text generation from rows to replies, with a tiny model."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DataError, ModelError, RecipeError, Where
from chainrule.system.progress import Quiet
from chainrule.testing.data import replies
from chainrule.testing.models import tiny_chat_model

pytestmark = pytest.mark.unit

PLAIN_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
messages = [{"role": "user", "content": sys.argv[2]}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
assert "chainrule" not in sys.modules
print(json.dumps(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()))
"""


class Told(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_model(tmp_path_factory.mktemp("chat") / "llama")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replies(tmp_path_factory.mktemp("talks"))


def train(model: Path, data: Path, out: Path, display: Quiet | None = None, /, **more: Any) -> Run:
    settings = {"model": str(model), "task": "text-generation", "strategy": "lora", "training.epochs": 12}
    settings |= {"optimizer.learning_rate": 2e-2, "training.precision": "float32", "training.threads": 1, **more}
    return chainrule.train(str(data), out=out, settings=settings, display=display)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, chat: Path, talks: Path) -> Run:
    return train(chat, talks, tmp_path_factory.mktemp("tuned") / "run", **{"strategy.options.merge": False})


def test_is_better_than_the_untuned_model(tuned: Run) -> None:
    summary = tuned.summary
    assert summary["primary_metric"] == "loss"
    assert set(summary["metrics"]) == {"loss", "perplexity", "token_accuracy"}
    assert summary["verdict"].startswith("Better than the untuned model by ")
    evaluations = [event for event in tuned.events() if event["event"] == "evaluation"]
    assert evaluations[0]["step"] == 0
    assert not evaluations[0]["best"]
    losses = [event["metrics"]["loss"] for event in evaluations]
    assert summary["metrics"]["loss"] == min(losses[1:]) < losses[0]
    assert not (tuned.path / "baselines").exists()


def test_evaluate_compares_with_the_base_under_the_adapters(tuned: Run) -> None:
    report = chainrule.evaluate(tuned, split="validation")
    assert report.metrics["loss"].value == pytest.approx(tuned.summary["metrics"]["loss"], rel=1e-5)
    start = next(event for event in tuned.events() if event["event"] == "evaluation")
    assert report.baselines["untuned"]["loss"].value == pytest.approx(start["metrics"]["loss"], rel=1e-5)
    assert report.verdict.baseline == "untuned"
    assert report.verdict.better


def test_merged_adapters_reply_alike_in_plain_transformers(chat: Path, talks: Path, tmp_path: Path) -> None:
    told = Told()
    run = train(chat, talks, tmp_path / "run", told, **{"training.epochs": 6})
    assert any("the adapters will be merged into it" in line for line in told.lines)
    [row] = chainrule.predict(run, text="film good", max_new_tokens=8)  # type: ignore[misc]
    assert row["predicted_finished"]
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, str(run.artifact.path), "film good"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == row["predicted_text"]
    assert chainrule.evaluate(run, split="validation").verdict.better, "the base is loaded anew to compare with"


@pytest.mark.parametrize("strategy", ["full", "partial", "gradual", "dora", "ia3", "qlora", "hybrid", "prompt"])
def test_other_strategies(strategy: str, chat: Path, talks: Path, tmp_path: Path) -> None:
    settings = {"strategy": strategy, "training.steps": 20}
    run = train(chat, talks, tmp_path / "run", **settings)
    assert run.summary["verdict"].startswith("Better than the untuned model")


def test_learned_replies_are_written(tuned: Run) -> None:
    rows = chainrule.predict(tuned, text=["film good", "room bad", "book is silly"], max_new_tokens=6)
    assert isinstance(rows, list)
    assert all(row["predicted_finished"] and row["predicted_text"].startswith("very") for row in rows)


def test_a_file_of_prompts(tuned: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "new.csv", tmp_path / "replies.csv"
    prompts = ["film good", "a very very very very long book room phone film bad", "it"] * 30
    source.write_text("id,question\n" + "".join(f"{i},{text}\n" for i, text in enumerate(prompts)), encoding="utf-8")
    assert chainrule.predict(tuned, str(source), out=out, max_new_tokens=6) == 90
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["id", "question", "predicted_text", "predicted_finished"]
    assert [row["id"] for row in rows] == [str(i) for i in range(90)]
    alone = chainrule.predict(tuned, text=prompts[:3], max_new_tokens=6)
    assert isinstance(alone, list)
    assert [row["predicted_text"] for row in rows[:3]] == [row["predicted_text"] for row in alone], (
        "padding changes nothing"
    )


def test_replies_that_do_not_end_are_told(tuned: Run, tmp_path: Path) -> None:
    source, told = tmp_path / "new.csv", Told()
    source.write_text("prompt\nfilm good\n", encoding="utf-8")
    chainrule.predict(tuned, str(source), out=tmp_path / "out.jsonl", max_new_tokens=1, display=told)
    assert json.loads((tmp_path / "out.jsonl").read_text())["predicted_finished"] is False
    assert told.lines[-1].startswith("warning: 1 of 1 replies had not ended")


def test_drawn_replies_follow_the_seed(tuned: Run) -> None:
    drawn = [chainrule.predict(tuned, text=["film"] * 8, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_temperature_that_is_next_to_nothing_is_none(tuned: Run) -> None:
    """Dividing by it would overflow."""
    coldest, cold = (chainrule.predict(tuned, text="film", temperature=t, top_p=t or 1.0) for t in (5e-324, 0.0))
    assert coldest == cold


@pytest.mark.parametrize(
    ("option", "field"),
    [({"max_new_tokens": 0}, "predict.options.max_new_tokens"), ({"max_new_tokens": 64}, "max_new_tokens")],
)
def test_lengths_that_cannot_be(tuned: Run, option: dict[str, int], field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        chainrule.predict(tuned, text="film", **option)  # type: ignore[arg-type]
    assert caught.value.problems[0].where.field == field


def test_other_tasks_write_no_text(trained: Run) -> None:
    with pytest.raises(RecipeError, match="writes no text"):
        chainrule.predict(trained, text="a film", max_new_tokens=5)


def test_the_report_and_the_card_speak_of_replies(tuned: Run) -> None:
    page = (tuned.path / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    for nonsense in ("Confusion", "TF-IDF", "Class by class", "SequenceClassification", "majority", "Label a file"):
        assert nonsense not in text
    for sense in ("Better than the untuned model", "perplexity", "token accuracy", "AutoModelForCausalLM", "⟦very"):
        assert sense in text
    card = (tuned.artifact.path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-generation" in card
    assert "library_name: peft" in card
    assert "to a reply." in card
    assert "labels" not in card


def test_rows_of_which_nothing_can_be_learned(chat: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"film {'very ' * (60 if i == 7 else 1)}{chr(97 + i % 26)} {i}", "response": "good"}
        for i in range(60)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        train(chat, data, tmp_path / "run")
    assert [problem.where.row for problem in caught.value.problems] == [8]
    assert "have no token of a reply" not in str(caught.value.problems[0])
    report = chainrule.check(str(data), task="text-generation", model=str(chat))
    assert not report.ok
    assert [found.rows for found in report.findings if found.kind == "nothing-to-learn"] == [(8,)]
    settings = {"data.on_bad_row": "skip", "training.epochs": 1}
    run = train(chat, data, tmp_path / "skipped", **settings)
    assert sum(run.artifact.manifest.data["rows"].values()) == 59


def test_check_shows_what_is_learned(chat: Path, talks: Path) -> None:
    report = chainrule.check(str(talks), task="text-generation", model=str(chat))
    (example,) = report.examples
    assert (example.row, example.split) == (1, "train")
    assert example.text.count("⟦very good [SEP]⟧") == 1
    lengths = report.splits["train"].lengths
    assert lengths["tokens_learned"] == 96 * 3


def test_a_model_that_is_no_language_model(tiny_bert: Path, talks: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        train(tiny_bert, talks, tmp_path / "run")


def test_packed_rows_make_the_same_steps(tmp_path: Path, chat: Path, talks: Path) -> None:
    losses = []
    for name, packing in (("padded", False), ("packed", True)):
        settings = {"training.packing": packing, "training.group_by_length": False, "training.steps": 4, "seed": 1}
        run = train(chat, talks, tmp_path / name, **settings, **{"training.micro_batch_tokens": 200})
        losses.append([event["loss"] for event in run.events() if event["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rows_that_would_see_each_other_are_not_packed(tmp_path: Path, tiny_bert: Path, reviews: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings={"training.packing": True})
    assert caught.value.problems[0].where == Where(field="training.packing")
    assert caught.value.problems[0].got == f"text-classification with {tiny_bert}"
    assert not (tmp_path / "run").exists()
