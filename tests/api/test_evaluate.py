"""`evaluate` and `predict` on what `train` made."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

import chainrule
from chainrule.core.artifact import Run
from chainrule.data.split import hash_texts
from chainrule.errors import DataError, ModelError, OutputError, RecipeError
from chainrule.testing.data import sentences, write_csv

pytestmark = pytest.mark.unit


def test_the_same_file_means_the_recorded_cut(trained: Run, reviews: Path) -> None:
    report = chainrule.evaluate(trained, str(reviews))
    assert report.split == "test"
    assert 30 <= report.rows <= 50
    assert report.primary_metric == "accuracy"
    assert report.verdict.baseline in report.baselines
    assert report.metrics["accuracy"].low <= report.metrics["accuracy"].value <= report.metrics["accuracy"].high
    assert (trained.path / "evaluations" / "test.json").is_file()


def test_a_copy_of_the_file_under_another_name_is_known_by_its_rows(
    trained: Run, reviews: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.csv"
    shutil.copy(reviews, copy)
    assert chainrule.evaluate(trained, str(copy)).split == "test"


def test_a_new_file_means_all_its_rows(trained: Run, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "new.csv", sentences(90, seed=9))
    report = chainrule.evaluate(trained, str(data))
    assert report.rows == 90
    assert report.split == "all"


def test_a_split_that_is_not_there_lists_those_that_are(trained: Run, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "new.csv", sentences(90, seed=9))
    with pytest.raises(DataError, match="validation"):
        chainrule.evaluate(trained, str(data), split="validation")


def test_a_split_is_never_made_up(trained: Run, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "new.csv", sentences(90, seed=9))
    with pytest.raises(DataError, match="no split 'test'"):
        chainrule.evaluate(trained, str(data), split="test")


def test_bad_rows_are_treated_as_in_training_unless_told(tiny_bert: Path, tmp_path: Path) -> None:
    rows = sentences(300)
    rows[5] = {"text": "", "label": "positive"}
    data = write_csv(tmp_path / "bad.csv", rows)
    settings = {"data.on_bad_row": "skip", "training.steps": 1, "training.precision": "float32"}
    run = chainrule.train(str(data), model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    report = chainrule.evaluate(run, str(data), split="test")
    assert [finding.rows for finding in report.findings if finding.kind == "skipped"] == [(6,)]
    with pytest.raises(DataError, match="1 row has no text"):
        chainrule.evaluate(run, str(data), on_bad_row="stop")
    with pytest.raises(RecipeError, match="expected stop or skip, got 'drop'"):
        chainrule.evaluate(run, str(data), on_bad_row="drop")  # type: ignore[arg-type]


def test_rows_that_are_cut_off_are_told(trained: Run, tmp_path: Path) -> None:
    rows = [*sentences(40, seed=9), {"text": "good " * 100, "label": "positive"}]
    found = chainrule.evaluate(trained, str(write_csv(tmp_path / "long.csv", rows))).findings
    assert [finding.rows for finding in found if finding.kind == "too-long"] == [(41,)]


def test_rows_of_the_test_split_are_no_warning(trained: Run, reviews: Path, tmp_path: Path) -> None:
    seen = load_file(trained.artifact.path / "rows.safetensors")["seen/test"]
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = [row for row, code in zip(rows, hash_texts([[row["text"] for row in rows]]), strict=True) if code in seen]
    data = write_csv(tmp_path / "again.csv", known + sentences(40, seed=9))
    report = chainrule.evaluate(trained, str(data))
    assert report.split == "all"
    assert known
    assert not any("test" in finding.message for finding in report.findings)


def test_rows_seen_in_training_are_reported(trained: Run, reviews: Path, tmp_path: Path) -> None:
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:50]
    data = write_csv(tmp_path / "seen.csv", rows + sentences(50, seed=9))
    findings = chainrule.evaluate(trained, str(data)).findings
    assert any(finding.kind == "shared-between-splits" and finding.severity == "warning" for finding in findings)


def test_an_artifact_evaluates_without_its_run(trained: Run, reviews: Path, tmp_path: Path) -> None:
    shutil.copytree(trained.artifact.path, tmp_path / "model")
    report = chainrule.evaluate(tmp_path / "model", str(reviews))
    assert report.split == "test"
    assert report.baselines == {}
    assert not report.verdict.better
    with pytest.raises(RecipeError, match="the data must be named"):
        chainrule.evaluate(tmp_path / "model")


def test_a_limit_is_said(trained: Run, reviews: Path) -> None:
    report = chainrule.evaluate(trained, str(reviews), limit=10)
    assert (report.rows, report.limit) == (10, 10)


def test_predictions_stand_beside_the_columns(trained: Run, tmp_path: Path) -> None:
    rows = [{"id": str(number), **row} for number, row in enumerate(sentences(30, seed=2))]
    data = write_csv(tmp_path / "new.csv", rows)
    assert chainrule.predict(trained, data, out=tmp_path / "labelled.csv") == 30
    with (tmp_path / "labelled.csv").open(encoding="utf-8", newline="") as file:
        labelled = list(csv.DictReader(file))
    assert list(labelled[0]) == ["id", "text", "label", "predicted_label", "predicted_score"]
    assert [row["id"] for row in labelled] == [row["id"] for row in rows]
    assert sum(row["predicted_label"] == row["label"] for row in labelled) >= 26
    in_memory = chainrule.predict(trained, data)
    assert isinstance(in_memory, list)
    assert [row["predicted_label"] for row in in_memory] == [row["predicted_label"] for row in labelled]


def test_a_prediction_does_not_depend_on_its_neighbours(trained: Run) -> None:
    texts = [row["text"] for row in sentences(40, seed=3)]
    together = chainrule.predict(trained, text=texts)
    assert isinstance(together, list)
    for text, row in list(zip(texts, together, strict=True))[::7]:
        alone = chainrule.predict(trained, text=text)
        assert isinstance(alone, list)
        assert alone[0]["predicted_label"] == row["predicted_label"]
        assert alone[0]["predicted_score"] == pytest.approx(row["predicted_score"], abs=1e-5)


def test_prediction_refuses_what_it_cannot_do(trained: Run, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "new.csv", sentences(5))
    with pytest.raises(OutputError, match="format is not known"):
        chainrule.predict(trained, data, out=tmp_path / "labelled.xlsx")
    assert not (tmp_path / "labelled.xlsx").exists()
    with pytest.raises(DataError, match="do not fit this model"):
        chainrule.predict(trained, text={"text_a": ["x"], "text_b": ["y"]})
    with pytest.raises(RecipeError, match="Nothing to predict"):
        chainrule.predict(trained)
    clash = write_csv(tmp_path / "clash.csv", [{"text": "good", "predicted_label": "x"}])
    with pytest.raises(DataError, match="column 'predicted_label' already"):
        chainrule.predict(trained, clash)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        chainrule.predict(tmp_path / "none", text="x")
    assert caught.value.problems[0].got == "no such folder"
    (tmp_path / "recipe.yaml").write_text("task: regression", encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        chainrule.predict(tmp_path, text="x")
    assert caught.value.problems[0].got == "a run that has not finished: it has no artifact"


def test_cleaning_is_repeated_on_every_text(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": f"<p>{row['text']}</p>"} for row in sentences(200)]
    data = write_csv(tmp_path / "html.csv", rows)
    settings = {"model": str(tiny_bert), "data.clean.html": True, "training.precision": "float32"}
    run = chainrule.train(str(data), out=tmp_path / "run", settings={**settings, "training.epochs": 1})
    plain, marked = chainrule.predict(run, text="a good film"), chainrule.predict(run, text="<b>a good film</b>")
    assert plain == marked
    assert chainrule.evaluate(run, str(data)).split == "test"


def test_texts_in_memory_are_checked_as_those_of_a_file(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one text, got none"):
        chainrule.predict(trained, text=[])
    with pytest.raises(DataError, match="row 2, field 'text': expected a text, got an empty one"):
        chainrule.predict(trained, text=["good", "  "])
    with pytest.raises(RecipeError, match="Only the predictions of a file"):
        chainrule.predict(trained, text="good", out=tmp_path / "labelled.csv")


def test_a_frame_with_a_broken_text_is_refused_not_shortened(trained: Run) -> None:
    frame = pd.DataFrame({"text": pd.Series(["good", "bad \ud83d"], dtype=object)})
    with pytest.raises(DataError, match="row 2"):
        chainrule.predict(trained, frame)
    clash = pd.DataFrame({"text": ["good"], "predicted_label": ["x"]})
    with pytest.raises(DataError) as caught:
        chainrule.predict(trained, clash)
    assert caught.value.problems[0].where.file == "DataFrame"


def test_every_kind_of_value_can_be_written_and_read_again(trained: Run, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"text": ["good", "bad\rdull"], "when": pd.to_datetime(["2024-01-01"] * 2), "tags": [["a", "b"], None]}
    )
    frame["share"] = [float("nan"), 0.5]
    frame.to_parquet(tmp_path / "new.parquet")
    for ending in ("jsonl", "csv"):
        assert chainrule.predict(trained, tmp_path / "new.parquet", out=tmp_path / f"labelled.{ending}") == 2
    first = json.loads((tmp_path / "labelled.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (first["when"], first["tags"], first["share"]) == ("2024-01-01 00:00:00", ["a", "b"], None)
    with (tmp_path / "labelled.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["good", "bad\rdull"]
    assert json.loads(rows[0]["tags"]) == ["a", "b"]


def test_rows_that_are_too_long_to_be_read_whole_are_named(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from chainrule.system.progress import Terminal

    rows = [{"text": "good"}, {"text": "good film " * 60}, {"text": "bad"}]
    data = write_csv(tmp_path / "long.csv", rows)
    chainrule.predict(trained, data, out=tmp_path / "out.csv", display=Terminal())
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 of 3 rows have more than 64 tokens and were read up to there (rows 2)." in told
