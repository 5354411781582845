"""Rows without labels: of them a student learns what its teachers say, and no label is made up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.core.recipe import Distillation, Spec
from chainrule.data.batch import IGNORED, Batch
from chainrule.errors import DataError, DivergedError, RecipeError
from chainrule.tasks.objectives import class_objective, label_objective, number_objective
from chainrule.testing.data import sentences, tagged, write_csv
from chainrule.testing.models import narrow_model, tiny_model
from chainrule.testing.runs import short_run
from chainrule.training.distillation import Distilled, softened, together

pytestmark = pytest.mark.unit
NONE = float("nan")


class Linear(torch.nn.Module):
    """Logits (b, outputs) of numbers (b, 4)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(outputs, 4, generator=draw))

    def forward(self, x: torch.Tensor) -> Any:
        class Output:
            logits = x @ self.weight.T

        return Output


def _learned(kind: str, targets: torch.Tensor, rows: slice, weight: float) -> tuple[float, torch.Tensor, int]:
    """The loss of some of four rows, its gradient, and the count."""
    draw = torch.Generator().manual_seed(2)
    x, said = torch.randn(4, 4, generator=draw), torch.randn(4, 1 if kind == "number" else 2, generator=draw)
    known = np.array([0, 1, 1, 0]) if kind == "class" else targets[:2].numpy()
    make: Any = {"class": class_objective, "classes": label_objective, "number": number_objective}[kind]
    name = {"class": "cross-entropy", "classes": "binary-cross-entropy", "number": "mean-squared-error"}[kind]
    model, options = Linear(said.shape[1]), Distillation(weight=weight)
    made = Distilled(make(Spec(name=name), known), kind, options)
    batch = Batch({"x": x[rows]}, targets[rows], np.arange(4)[rows], 0, softened(said, kind, 2.0)[rows])
    total, count = made.accumulate(model, batch)
    assert model.weight.grad is not None
    return float(total), model.weight.grad, count


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("class", torch.tensor([1, 0, IGNORED, IGNORED])),
        ("classes", torch.tensor([[1.0, 0.0], [1.0, 1.0], [NONE, NONE], [NONE, NONE]])),
        ("number", torch.tensor([1.5, 2.5, NONE, NONE], dtype=torch.float64)),
    ],
)
def test_rows_without_labels_have_the_teachers_term_alone(kind: str, targets: torch.Tensor) -> None:
    """(1 − w) · own + w · teacher of labelled rows, w · teacher of the others; together their sum."""
    loss, gradient, count = _learned(kind, targets, slice(0, 4), 0.7)
    parts = [_learned(kind, targets, rows, 0.7) for rows in (slice(0, 2), slice(2, 4))]
    assert count == 4
    assert loss == pytest.approx(sum(part[0] for part in parts), rel=1e-5)
    torch.testing.assert_close(gradient, parts[0][1] + parts[1][1])
    whole = _learned(kind, targets, slice(2, 4), 1.0)
    assert parts[1][0] == pytest.approx(0.7 * whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1][1], 0.7 * whole[1])
    labelled = _learned(kind, targets, slice(0, 2), 1.0)
    assert parts[0][0] != pytest.approx(0.7 * labelled[0], rel=1e-3)


def test_without_a_label_teachers_are_trusted_alike() -> None:
    said = [torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([[0.1, 0.9], [0.1, 0.9]])]
    found = together(said, torch.tensor([0, IGNORED]), "class", "row")
    torch.testing.assert_close(found, torch.tensor([[0.82, 0.18], [0.5, 0.5]]))
    labels = together(said, torch.tensor([[1.0, 0.0], [NONE, NONE]]), "classes", "row")
    torch.testing.assert_close(labels[1], torch.tensor([0.5, 0.5]))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run("text-classification", tmp_path_factory.mktemp("teacher") / "x", training__steps=20)


def _settings(teacher: Run, further: Path | None, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"model": str(teacher.path.parent / "model"), "training.threads": 1}
    known |= {"training.precision": "float32", "training.epochs": 1, "distillation.teachers": [str(teacher.path)]}
    return known | {"distillation.unlabelled": None if further is None else str(further)} | changes


def _texts(rows: int, seed: int) -> list[dict[str, str]]:
    return [{"text": row["text"]} for row in sentences(rows, seed=seed)]


def test_a_student_learns_from_rows_without_labels(teacher: Run, tmp_path: Path) -> None:
    data = teacher.path.parent / "rows" / "rows.csv"
    splits = teacher.artifact.manifest.data["rows"]
    known = sentences(240)  # all rows of the data, in whatever split
    further = write_csv(tmp_path / "more.csv", [*_texts(100, 9), *[{"text": row["text"]} for row in known]])
    narrow = narrow_model(tmp_path / "narrow", teacher.path.parent / "model")
    settings = _settings(teacher, further, **{"model": str(narrow), "distillation.hidden": 1.0})
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings)
    (start,) = (event for event in run.events() if event["event"] == "start")
    assert start["rows"] == splits["train"] + 100
    assert run.summary["steps"] == -(-start["rows"] // 32)
    findings = json.loads((run.path / "check.json").read_text(encoding="utf-8"))["findings"]
    assert ("unlabelled", 100) in {(found["kind"], found["count"]) for found in findings}
    messages = [found["message"] for found in findings]
    assert "100 rows without labels are learned from the teachers alone." in messages
    left = "rows without labels stand in validation, too: left out, so that what judges stays unseen."
    assert any(message.endswith(left) for message in messages)
    assert any("stand in train, too: left out, as they are learned with their labels." in each for each in messages)
    assert "100 rows without labels" in (run.path / "report.html").read_text(encoding="utf-8")
    assert run.artifact.manifest.recipe["distillation"]["unlabelled"] == "more.csv"
    assert run.artifact.manifest.data["rows"] == splits


def test_a_student_learns_from_changed_copies_of_the_rows(teacher: Run, tmp_path: Path) -> None:
    data = teacher.path.parent / "rows" / "rows.csv"
    splits = teacher.artifact.manifest.data["rows"]
    further = write_csv(tmp_path / "more.csv", _texts(100, 9))
    for name, more, least in (("alone", None, 0), ("both", further, 100)):
        settings = _settings(teacher, more, **{"distillation.variants": 2})
        run = chainrule.train(str(data), out=tmp_path / name, settings=settings)
        (start,) = (event for event in run.events() if event["event"] == "start")
        made = start["rows"] - splits["train"] - least
        assert splits["train"] < made <= 2 * splits["train"]
        assert f"{made:,} rows made of training rows are learned from the teachers." in {
            found["message"] for found in json.loads((run.path / "check.json").read_text(encoding="utf-8"))["findings"]
        }
    assert chainrule.reproduce(tmp_path / "alone", out=tmp_path / "again").same
    settings = _settings(teacher, None, **{"distillation.variants": 2, "distillation.teachers": []})
    with pytest.raises(RecipeError, match="expected teachers, as copies of rows have no labels, got none"):
        chainrule.train(str(data), out=tmp_path / "out", settings=settings)


def test_rows_of_one_word_each_have_no_copies(tmp_path: Path) -> None:
    rows = [{"text": "x" * (1 + number), "label": "ab"[number % 2]} for number in range(60)]
    data, model = write_csv(tmp_path / "words.csv", rows), tiny_model(tmp_path / "bert")
    settings = {"model": str(model), "training.threads": 1, "training.steps": 2}
    run = chainrule.train(str(data), out=tmp_path / "teacher", settings=settings)
    taught = settings | {"distillation.teachers": [str(run.path)], "distillation.variants": 2}
    (start,) = (
        e for e in chainrule.train(str(data), out=tmp_path / "run", settings=taught).events() if e["event"] == "start"
    )
    assert start["rows"] == run.artifact.manifest.data["rows"]["train"]


def test_other_rows_are_noticed_when_a_run_goes_on(teacher: Run, tmp_path: Path) -> None:
    further, out = write_csv(tmp_path / "more.csv", _texts(40, 9)), tmp_path / "out"
    data = teacher.path.parent / "rows" / "rows.csv"
    settings = _settings(teacher, further, **{"training.epochs": None, "training.steps": 2})
    chainrule.train(str(data), out=out, settings=settings)
    (out / "summary.json").unlink()
    write_csv(further, _texts(40, 10))
    with pytest.raises(DataError) as told:
        chainrule.resume(out)
    assert told.value.problems[0].expected == "the rows without labels that the run began with"


def test_rows_that_cannot_be_used_are_refused(teacher: Run, tmp_path: Path) -> None:
    data = teacher.path.parent / "rows" / "rows.csv"

    def told(further: Path, kind: type[Exception], **changes: Any) -> Any:
        with pytest.raises(kind) as raised:
            chainrule.train(str(data), out=tmp_path / "out", settings=_settings(teacher, further, **changes))
        assert not (tmp_path / "out").exists()
        return raised.value.problems[0]  # type: ignore[attr-defined]

    empty = write_csv(tmp_path / "empty.csv", [*_texts(3, 9), {"text": " "}])
    assert (told(empty, DataError).expected, told(empty, DataError).where.row) == ("a text", 4)
    other = write_csv(tmp_path / "other.csv", [{"number": "1"}])
    assert told(other, DataError).where.file == str(other)
    same = write_csv(tmp_path / "same.csv", [{"text": row["text"]} for row in sentences(240)])
    assert told(same, DataError).expected == "rows that the data does not have already"
    fine = write_csv(tmp_path / "fine.csv", _texts(3, 9))
    alone = told(fine, RecipeError, **{"distillation.teachers": []})
    assert alone.expected == "teachers, as there are rows without labels"


def test_rows_without_labels_are_counted_where_training_has_diverged(teacher: Run, tmp_path: Path) -> None:
    narrow = narrow_model(tmp_path / "narrow", teacher.path.parent / "model")
    model = AutoModel.from_pretrained(narrow)
    torch.nn.init.constant_(model.embeddings.LayerNorm.weight, 1e38)
    model.save_pretrained(narrow)
    data = teacher.path.parent / "rows" / "rows.csv"
    settings = _settings(teacher, write_csv(tmp_path / "more.csv", _texts(2000, 9)), model=str(narrow))
    with pytest.raises(DivergedError) as told:
        chainrule.train(str(data), out=tmp_path / "out", settings=settings)
    assert re.search(
        r"; first in the output of .*; rows of train: [\d, ]*\d+ without labels", told.value.problems[0].got
    )


def test_words_need_labels(tmp_path: Path) -> None:
    taught = short_run("token-classification", tmp_path / "teacher", training__steps=2)
    data, model = tmp_path / "teacher" / "rows" / "rows.jsonl", tmp_path / "teacher" / "model"
    further = write_csv(tmp_path / "more.csv", _texts(3, 9))
    settings = _settings(taught, further, model=str(model), task="token-classification")
    with pytest.raises(RecipeError, match="Only labelled rows can be learned here") as told:
        chainrule.train(str(data), out=tmp_path / "out", settings=settings)
    assert told.value.problems[0].expected == "a task whose rows are texts with one target each"


def test_several_labels_and_compress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taught = short_run("multi-label-classification", tmp_path / "teacher", training__steps=8)
    narrow = narrow_model(tmp_path / "narrow", tmp_path / "teacher" / "model")
    further = write_csv(tmp_path / "more.csv", [{"text": row["text"]} for row in tagged(50, seed=9)])
    command = ["compress", str(taught.path), "--distill", str(narrow), "--kept", "0.01", "--epochs", "0.5"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--unlabelled", str(further), "--allow-slower", "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 0, capsys.readouterr().out
    (start,) = (event for event in Run(tmp_path / "out").events() if event["event"] == "start")
    assert start["rows"] == taught.artifact.manifest.data["rows"]["train"] + 50
    command = ["compress", str(taught.path), "--to", "int8", "--unlabelled", str(further)]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(tmp_path / "no")])
    assert stop.value.code == 2
