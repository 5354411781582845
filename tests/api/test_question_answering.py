"""Question answering from rows to answers, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.errors import DataError, RecipeError
from chainrule.evaluation.plain_use import plain_use
from chainrule.testing.data import questions, write_json_lines
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit
LONG = " ".join(["the film was"] * 40 + ["awful"] + ["the film was"] * 40)


def folder_of(rows: Path, counts: dict[str, int], *, unanswerable: bool) -> Path:
    for seed, (name, count) in enumerate(counts.items()):
        write_json_lines(rows / f"{name}.jsonl", questions(count, seed=seed, unanswerable=unanswerable))
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": 160, "validation": 45, "test": 60}
    return folder_of(tmp_path_factory.mktemp("questions"), counts, unanswerable=True)


def train(model: Path, data: Path, out: Path, /, **more: Any) -> Run:
    settings = {"model": str(model), "task": "question-answering", "training.epochs": 5, "training.threads": 1}
    settings |= {"training.batch_size": 8, "optimizer.learning_rate": 5e-3, "training.precision": "float32", **more}
    return chainrule.train(str(data), out=out, settings=settings)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, data: Path) -> Run:
    return train(tiny_bert, data, tmp_path_factory.mktemp("qa") / "run", **{"task.options.max_answer_tokens": 4})


def asked(run: Run, *contexts: str) -> list[dict[str, Any]]:
    found = chainrule.predict(run, text={"question": ["was it"] * len(contexts), "context": list(contexts)})
    assert not isinstance(found, int)
    return found


def test_answers_what_it_was_shown_and_says_where_there_is_nothing(tuned: Run, data: Path) -> None:
    report = chainrule.evaluate(tuned, str(data))
    scores = {name: estimate.value for name, estimate in report.metrics.items()}
    names = {"f1", "exact_match", "HasAns_f1", "HasAns_exact_match", "NoAns_f1", "NoAns_exact_match", "loss"}
    assert scores.keys() == names
    assert scores["f1"] > 0.75
    assert report.metrics["f1"].low <= scores["f1"] <= report.metrics["f1"].high
    assert set(report.baselines) == {"sentence-overlap", "no-answer"}
    assert report.baselines["no-answer"]["f1"].value == report.baselines["no-answer"]["exact_match"].value > 0.25
    assert report.verdict.better
    assert sum(report.detail["errors"].values()) == 60
    (good, nothing) = asked(tuned, "the film was good  and", "the film and")
    assert (good["predicted_answer"], good["predicted_start"]) == ("good", 13)
    assert 0.5 < good["predicted_score"] <= 1
    assert (nothing["predicted_answer"], nothing["predicted_start"]) == ("", None)
    page = (tuned.path / "report.html").read_text(encoding="utf-8")
    assert "rightly none" in page
    assert '--question "…" --context "…"' in page.replace("&#34;", '"')


def test_the_threshold_of_validation_is_in_the_artifact(tuned: Run, data: Path) -> None:
    config = json.loads((tuned.path / "artifact" / "config.json").read_text(encoding="utf-8"))
    assert config["max_answer_tokens"] == 4
    assert isinstance(config["null_score_diff_threshold"], float)
    assert tuned.artifact.manifest.recipe["task"]["options"] == {"max_answer_tokens": 4}
    again = chainrule.evaluate(tuned, str(data), split="validation")
    for name, value in tuned.summary["metrics"].items():
        assert again.metrics[name].value == pytest.approx(value, abs=1e-5)


def test_long_contexts_are_read_in_windows(tuned: Run) -> None:
    (found,) = asked(tuned, LONG)
    assert (found["predicted_answer"], found["predicted_start"]) == ("awful", LONG.index("awful"))


def test_files_and_a_question_on_the_command_line(
    tuned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": 7, "query": "was it", "passage": "a good room"}, {"id": 8, "query": "was it", "passage": "it is"}]
    source = write_json_lines(tmp_path / "new.jsonl", rows)
    assert chainrule.predict(tuned, str(source), out=tmp_path / "out.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["predicted_answer"], row["predicted_start"]) for row in lines] == [
        (7, "good", 2),
        (8, "", None),
    ]
    command = ["predict", str(tuned.path), "--question", "was it"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--context", "the cold room"])
    assert capsys.readouterr().out.split()[:2] == ["cold", "4"]
    with pytest.raises(SystemExit, match=r"^2$"):
        main(command)
    assert "--question and --context go together, without --text." in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match="too long to be answered") as caught:
        chainrule.predict(tuned, text={"question": ["was it", "good " * 60], "context": ["it", "it"]})
    (problem,) = caught.value.problems
    assert (problem.where.row, problem.got) == (2, "one of 60, where 29 have room")
    with pytest.raises(DataError, match="do not fit this model") as caught:
        chainrule.predict(tuned, text="was it")
    assert caught.value.problems[0].todo == "This model was trained on questions with their contexts."


def test_the_lines_of_the_model_card_give_the_same_in_plain_transformers(
    tuned: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code = plain_use("question-answering", ("transformers",), repr(str(tuned.path / "artifact")), "", {}, ())
    assert "null_score_diff_threshold" in (tuned.path / "artifact" / "README.md").read_text(encoding="utf-8")
    assert "chainrule" not in code.lower().replace(str(tuned.path).lower(), "")
    for context in ("the film was bad and", "the film and"):
        exec(code.replace('"…", "…"', f'"was it", "{context}"'), {})
    assert capsys.readouterr().out.splitlines() == ["bad", "no answer"]


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_other_families_learn_rows_that_all_have_an_answer(family: str, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", {"train": 80, "validation": 30}, unanswerable=False)
    run = train(tiny_model(tmp_path / "model", family), data, tmp_path / "run")
    assert run.summary["metrics"]["f1"] > 0.3
    assert set(run.summary["metrics"]) == {"f1", "exact_match", "loss"}
    (found,) = asked(run, "nothing of it")
    assert found["predicted_answer"]


@pytest.mark.parametrize("strategy", ["lora", "qlora", "partial"])
def test_artifacts_of_other_strategies_say_what_was_trained(
    strategy: str, tiny_bert: Path, data: Path, tmp_path: Path
) -> None:
    run = train(tiny_bert, data, tmp_path / "run", **{"strategy": strategy, "training.epochs": 1})
    again = chainrule.evaluate(run, str(data), split="validation")
    assert again.metrics["f1"].value == pytest.approx(run.summary["metrics"]["f1"], abs=1e-5)
    assert again.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], rel=1e-3)


def test_folds_and_checkpoints(tiny_bert: Path, tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "rows.jsonl", questions(60, unanswerable=True))
    more = {"training.folds": 2, "training.epochs": 1, "training.checkpoint_minutes": 1e-4}
    run = train(tiny_bert, source, tmp_path / "run", **more)
    told = run.summary["cross_validation"]
    assert told["rows"] == 60
    assert {"f1", "exact_match"} <= told["metrics"].keys()


def test_check_shows_the_answer_between_marks(tiny_bert: Path, data: Path) -> None:
    report = chainrule.check(str(data), task="question-answering", model=str(tiny_bert), shown=3)
    assert [example.text.count("⟦") for example in report.examples] == [1, 1, 1]
    assert report.examples[0].text.startswith("⟦[CLS]⟧")
    assert {"no-answer"} <= {finding.kind for finding in report.findings}
    short = chainrule.check(str(data), task="question-answering", model=str(tiny_bert), max_length=10)
    assert "windowed" in {finding.kind for finding in short.findings}
    assert "too-long" not in {finding.kind for finding in short.findings}
    tight = chainrule.check(str(data), task="question-answering", model=str(tiny_bert), max_length=8)
    assert not tight.ok
    assert "question that leaves half of 8 tokens to its context" in str(tight.problems[0])


def test_what_does_not_go_together_is_refused_before_training(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="A model that finds answers has no head to replace"):
        train(tiny_bert, data, tmp_path / "a", **{"structure.head": "linear"})
    with pytest.raises(RecipeError, match="'contrastive' does not go together with question-answering"):
        train(tiny_bert, data, tmp_path / "b", **{"strategy": "contrastive"})
    with pytest.raises(RecipeError, match="'prompt' does not go together with question-answering"):
        train(tiny_bert, data, tmp_path / "e", **{"strategy": "prompt"})
    with pytest.raises(RecipeError, match="r-drop"):
        train(tiny_bert, data, tmp_path / "c", **{"regularisers": ["r-drop"]})
    with pytest.raises(RecipeError, match="The options of task 'question-answering' are wrong"):
        train(tiny_bert, data, tmp_path / "d", **{"task.options.longest": 3})
