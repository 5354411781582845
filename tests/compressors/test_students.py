"""Students: the mathematics against plain torch in float64, who may teach whom, and from teacher to student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import chainrule
from chainrule.cli import main
from chainrule.compressors.students import choices_of_layers
from chainrule.core.artifact import Run
from chainrule.core.recipe import Distillation, Spec
from chainrule.data.batch import Batch
from chainrule.errors import DataError, GateError, ModelError, RecipeError
from chainrule.tasks.objectives import class_objective, label_objective, number_objective
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.testing.runs import short_run
from chainrule.training.distillation import Distilled, distance, softened, together

pytestmark = pytest.mark.unit
Targets = torch.Tensor
GENERATOR = torch.Generator().manual_seed(3)


class Linear(nn.Module):
    """Logits (b, 3) of numbers (b, 4)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 4, generator=GENERATOR, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> Any:
        class Output:
            logits = x @ self.weight.T

        return Output


def _batch(targets: Targets, references: torch.Tensor) -> Batch:
    x = torch.randn(len(targets), 4, generator=GENERATOR, dtype=torch.float64)
    return Batch({"x": x}, targets, np.arange(len(targets)), 0, references)


def test_classes_against_the_formula() -> None:
    """(1 − w) · cross-entropy + w · T² · Σ p log(p / q), and its gradient."""
    targets, teacher = torch.tensor([0, 2, 1, 1, 0]), torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
    weight, heat = 0.7, 3.0
    batch = _batch(targets, softened(teacher, "class", heat))
    model = Linear(3)
    objective = class_objective(Spec(name="cross-entropy"), targets.numpy())
    made = Distilled(objective, "class", Distillation(weight=weight, temperature=heat))
    total, count = made.accumulate(model, batch)
    logits = batch.inputs["x"].float().double() @ model.weight.T
    p, q = torch.softmax(teacher / heat, -1), torch.softmax(logits / heat, -1)
    own = -torch.log_softmax(logits, -1)[torch.arange(5), targets]
    expected = ((1 - weight) * own + weight * heat**2 * (p * (p.log() - q.log())).sum(-1)).sum()
    (wanted,) = torch.autograd.grad(expected, model.weight)
    assert count == 5
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(model.weight.grad, wanted, rtol=1e-4, atol=1e-5)


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    logits = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    for kind in ("class", "classes"):
        losses = distance(logits, softened(logits.detach(), kind, 2.0), kind, 2.0)
        assert losses.abs().max().item() < 1e-12
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert gradient.abs().max().item() < 1e-12
        assert (distance(logits, softened(-logits.detach(), kind, 2.0), kind, 2.0) > 0).all()


def test_labels_and_numbers() -> None:
    targets, wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.2], [0.3, 0.6]])
    objective = label_objective(Spec(name="binary-cross-entropy"), targets.numpy())
    total, _ = Distilled(objective, "classes", Distillation(weight=1.0)).accumulate(Linear(2), _batch(targets, wanted))
    assert total.item() > 0
    numbers = torch.tensor([1.0, 2.0, 4.0])
    model = Linear(1)
    regression = number_objective(Spec(name="mean-squared-error"), numbers.numpy())
    batch = _batch(numbers, torch.tensor([[1.5], [2.0], [3.0]]))
    found, _ = Distilled(regression, "number", Distillation(weight=1.0)).accumulate(model, batch)
    said = (batch.inputs["x"] @ model.weight.T).detach().float()
    assert found.item() == pytest.approx(regression.divergence(said, torch.tensor([[1.5], [2.0], [3.0]])).sum().item())


def test_several_teachers() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    wrong = torch.tensor([[0.1, 0.9], [0.5, 0.5]])
    targets = torch.tensor([0, 1])
    torch.testing.assert_close(together([sure, wrong], targets, "class", "equal"), torch.full((2, 2), 0.5))
    trusted = together([sure, wrong], targets, "class", "row")
    torch.testing.assert_close(trusted[0], torch.tensor([0.9 * 0.9 + 0.1 * 0.1, 0.9 * 0.1 + 0.1 * 0.9]))
    torch.testing.assert_close(trusted[1], torch.tensor([0.5, 0.5]))
    labels = together([sure, wrong], torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "classes", "row")
    assert labels[0, 0] > 0.8
    torch.testing.assert_close(labels[1], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("there", "wanted", "first"),
    [(6, 3, (0, 2, 5)), (12, 4, (0, 4, 7, 11)), (2, 1, (0,)), (6, 5, (0, 1, 2, 4, 5))],
)
def test_choices_of_layers(there: int, wanted: int, first: tuple[int, ...]) -> None:
    choices = choices_of_layers(there, wanted)
    assert choices[0] == first
    assert len(choices) == len(set(choices)) <= 4
    assert all(len(set(choice)) == wanted and sorted(choice) == list(choice) for choice in choices)
    assert all(0 <= layer < there for choice in choices for layer in choice)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run("text-classification", tmp_path_factory.mktemp("teacher") / "x", training__steps=40)


def test_a_student_of_fewer_layers(teacher: Run, tmp_path: Path) -> None:
    run, step = chainrule.distill(teacher, "self:1", tmp_path / "student", kept=0.7, allow_slower=True)
    assert step.step == "compress --distill self:1"
    assert run.artifact.manifest.lineage == (step,)
    assert run.artifact.manifest.parent == teacher.artifact.manifest.weights_sha256
    assert step.parity.before is not None
    assert step.parity.after is not None
    assert step.parity.after >= 0.7 * step.parity.before
    recipe = chainrule.read_recipe(run.path / "resolved.yaml")
    assert recipe.structure.keep_layers in ((0,), (1,))
    assert recipe.distillation.teachers == (str(teacher.artifact.path),)
    assert run.artifact.manifest.recipe["distillation"]["teachers"] == ["artifact"]  # no path of this machine
    model = AutoModelForSequenceClassification.from_pretrained(run.artifact.path)
    assert model.config.num_hidden_layers == 1
    assert not list(tmp_path.glob(".*"))


def test_a_student_is_judged_on_rows_that_it_has_not_learned(teacher: Run, tmp_path: Path) -> None:
    """Of a new file without splits, those that its own run has kept for testing."""
    data = write_csv(tmp_path / "new.csv", sentences(200, seed=8))
    limits: Any = {"epochs": 0.5, "kept": 0.1, "allow_slower": True}
    run, step = chainrule.distill(teacher, "self:1", tmp_path / "student", data=str(data), **limits)
    assert step.parity.data == "new.csv, test"
    assert step.parity.rows == run.artifact.manifest.data["rows"]["test"] < 50


def test_a_student_of_another_architecture(teacher: Run, tmp_path: Path) -> None:
    """It has a vocabulary of its own."""
    other = tiny_model(tmp_path / "distilbert", "distilbert", seed=5)
    for student in ("lstm", str(other)):
        out = tmp_path / Path(student).name / "run"
        run, step = chainrule.distill(teacher, student, out, epochs=2, kept=0.1, allow_slower=True)
        assert step.parity.rows >= 20
        assert run.artifact.manifest.base_model == Path(student).name
        assert run.artifact.manifest.recipe["distillation"]["variants"] == (8 if student == "lstm" else 0)
    recipe = chainrule.read_recipe(tmp_path / "lstm" / "run" / "resolved.yaml")
    assert recipe.model.options["pieces"] == str(teacher.artifact.path)
    assert chainrule.show(tmp_path / "lstm" / "run")["finished"]


def test_teachers_of_words(tmp_path: Path) -> None:
    taught = short_run("token-classification", tmp_path / "teacher", training__steps=30)
    data, model = tmp_path / "teacher" / "rows" / "rows.jsonl", tmp_path / "teacher" / "model"
    settings = {"task": "token-classification", "model": str(model), "training.steps": 4, "training.threads": 1}
    settings |= {"distillation.teachers": [str(taught.path)], "distillation.weight": 1.0, "structure.keep_layers": [0]}
    run = chainrule.train(str(data), out=tmp_path / "student", settings=settings)
    assert run.summary["steps"] == 4
    lstm = settings | {"model": "lstm", "structure.keep_layers": None}
    with pytest.raises(RecipeError) as told:
        chainrule.train(str(data), out=tmp_path / "other", settings=lstm)
    assert told.value.problems[0].expected == "teachers of words and replies that read the student's tokens"
    with pytest.raises(GateError, match="the run stays in"):  # which has learned too little, but did learn
        chainrule.distill(taught, "lstm", tmp_path / "lstm", epochs=1)
    assert Run(tmp_path / "lstm").artifact.manifest.base_model == "lstm"


def test_two_teachers_are_one_training(teacher: Run, tmp_path: Path) -> None:
    data = teacher.path.parent / "rows" / "rows.csv"
    model = str(teacher.path.parent / "model")
    settings = {"model": model, "training.steps": 4, "training.threads": 1, "training.precision": "float32"}
    twice = {"distillation.teachers": [str(teacher.path)] * 2}
    for trust in ("equal", "row"):
        one = settings | {"distillation.teachers": [str(teacher.path)]}
        first = chainrule.train(str(data), out=tmp_path / f"one-{trust}", settings=one)
        second = chainrule.train(
            str(data), out=tmp_path / f"two-{trust}", settings=settings | twice | {"distillation.trust": trust}
        )
        losses = [[event["loss"] for event in run.events() if event["event"] == "step"] for run in (first, second)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _refusals() -> dict[str, tuple[Callable[[Path], dict[str, Any]], str]]:
    return {
        "task": (lambda folder: {"task": "regression", "data.fields": {"score": "score"}}, "a teacher for regression"),
        "folds": (lambda folder: {"training.folds": 2}, "training without folds, as teachers know the rows held out"),
    }


@pytest.mark.parametrize("case", _refusals())
def test_teachers_that_do_not_suit_are_refused(case: str, teacher: Run, tmp_path: Path) -> None:
    make, expected = _refusals()[case]
    rows = [{**row, "score": str(number % 7)} for number, row in enumerate(sentences(60))]
    data = write_csv(tmp_path / "rows.csv", rows)
    settings = {"model": str(teacher.path.parent / "model"), "training.steps": 2, "training.threads": 1}
    settings |= {"distillation.teachers": [str(teacher.path)]} | make(tmp_path)
    with pytest.raises(RecipeError, match="The student cannot learn like this") as told:
        chainrule.train(str(data), out=tmp_path / "out", settings=settings)
    assert told.value.problems[0].expected == expected


def test_other_labels_are_refused(teacher: Run, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", sentences(60, labels=("no", "yes")))
    settings = {"model": str(teacher.path.parent / "model"), "distillation.teachers": [str(teacher.path)]}
    with pytest.raises(RecipeError) as told:
        chainrule.train(str(data), out=tmp_path / "out", settings=settings)
    assert str(told.value.problems[0]).startswith(
        "field 'distillation.teachers': expected a teacher of the labels no, yes"
    )


def test_another_teacher_is_noticed_when_a_run_goes_on(teacher: Run, tmp_path: Path) -> None:
    taught, out = tmp_path / "taught", tmp_path / "out"
    shutil.copytree(teacher.path / "artifact", taught)
    data, model = teacher.path.parent / "rows" / "rows.csv", teacher.path.parent / "model"
    settings = {"model": str(model), "distillation.teachers": [str(taught)], "training.steps": 4}
    chainrule.train(str(data), out=out, settings=settings)
    shutil.rmtree(out / "artifact")
    (out / "summary.json").unlink()
    manifest = json.loads((taught / "chainrule.json").read_text(encoding="utf-8"))
    (taught / "chainrule.json").write_text(json.dumps(manifest | {"weights_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(DataError) as told:
        chainrule.resume(out)
    assert told.value.problems[0].expected == "the teachers that the run began with"


def test_students_that_cannot_be_are_refused(teacher: Run, tmp_path: Path) -> None:
    for student in ("self:0", "self:2", "self:9", "self:x"):
        with pytest.raises(ModelError) as told:
            chainrule.distill(teacher, student, tmp_path / "out")
        assert told.value.problems[0].expected == "from 1 to 1 of the teacher's 2 layers"
    chat = short_run("preference", tmp_path / "chat")
    with pytest.raises(ModelError) as told:
        chainrule.distill(chat, "self:1", tmp_path / "out")
    assert told.value.problems[0].got == "one for preference, which says more of a row than a few logits"
    chainrule.export(teacher, "hf", tmp_path / "alone")
    with pytest.raises(RecipeError) as other:
        chainrule.distill(tmp_path / "alone", "self:1", tmp_path / "out")
    assert other.value.problems[0].got == "none: the teacher does not lie in its run"
    assert not (tmp_path / "out").exists()


def test_a_student_that_is_too_weak_is_told(teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(teacher.path), "--distill", "self:1", "--kept", "1.5", "--epochs", "0.2"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 3
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["message"] == f"compress --distill self:1 gave another model; the run stays in {tmp_path / 'out'}."
    assert (tmp_path / "out" / "artifact" / "chainrule.json").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(teacher.path), "--out", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "one of these: --to int8, --distill self:3, --prune 30%" in capsys.readouterr().err
