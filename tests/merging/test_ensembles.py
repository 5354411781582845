"""Ensembles: the mean of what members say, weights that suit the rows, and an artifact like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Artifact, Run
from chainrule.errors import ModelError, RecipeError
from chainrule.inference.ensemble import from_mean, probabilities
from chainrule.inference.predict import load_predictor
from chainrule.merging.ensembles import chosen, mixture, out_of_fold, stacked
from chainrule.testing.models import tiny_model
from chainrule.testing.runs import short_run
from chainrule.testing.servers import start_at_once

pytestmark = pytest.mark.unit
FREE: Any = {"loss": 100.0, "worst": 1e6}


@pytest.mark.parametrize("kind", ["class", "classes", "number", "spans"])
def test_logits_of_the_mean_say_the_mean(kind: str) -> None:
    said = probabilities(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), kind)
    mean = said.mean(0)
    torch.testing.assert_close(probabilities(from_mean(mean, kind), kind), mean)


@given(st.integers(2, 4), st.integers(5, 60), st.integers(0, 99))
def test_shares_of_a_mixture_are_the_likeliest(members: int, rows: int, seed: int) -> None:
    """Against shares drawn by chance."""
    draw = np.random.default_rng(seed)
    likely = draw.uniform(0.01, 1, (rows, members))
    found = np.array(mixture(likely))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    best = np.log(likely @ found).sum()
    for shares in draw.dirichlet(np.ones(members), 50):
        assert best >= np.log(likely @ shares).sum() - 1e-3


def test_numbers_get_the_weights_they_were_made_with() -> None:
    draw = np.random.default_rng(1)
    said = [draw.normal(size=(40, 1)) for _ in range(3)]
    targets = 0.7 * said[0][:, 0] + 0.3 * said[2][:, 0]
    assert stacked(said, targets, "number") == pytest.approx([0.7, 0.0, 0.3], abs=1e-6)
    weights, why = chosen(said, targets, "number")
    assert weights == pytest.approx([0.7, 0.0, 0.3], abs=1e-6)
    assert why.startswith("stacked, better than equal ones by +")


@pytest.mark.parametrize("kind", ["class", "classes"])
def test_weights_are_fitted_only_where_that_is_better_out_of_fold(kind: str) -> None:
    draw = np.random.default_rng(2)
    targets = draw.integers(0, 3, 200) if kind == "class" else draw.integers(0, 2, (200, 3)).astype(float)
    right = np.eye(3)[targets] if kind == "class" else targets
    good = 0.8 * right + 0.1 * (1 - right)
    blind = np.full((200, 3), 1 / 3)
    weights, why = chosen([good, blind], targets, kind)
    assert weights[0] > 0.9
    assert why.startswith("stacked, better than equal ones by +")
    noisy = [np.clip(good + draw.normal(0, 0.05, good.shape), 0.01, 0.98) for _ in range(2)]
    weights, why = chosen([each / each.sum(1, keepdims=True) for each in noisy], targets, kind)
    assert weights == [0.5, 0.5]
    assert why.startswith("equal; stacking is not shown to be better (")


def test_gains_out_of_fold_do_not_know_their_rows() -> None:
    """With members that say nothing about the targets, fitted weights gain nothing in the mean."""
    draw = np.random.default_rng(3)
    gains = []
    for _ in range(40):
        said = [draw.dirichlet(np.ones(3), 60) for _ in range(4)]
        gains.append(out_of_fold(said, draw.integers(0, 3, 60), "class").mean())
    assert np.mean(gains) < 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two architectures over the same tokens and rows."""
    folder = tmp_path_factory.mktemp("runs")
    first = short_run("text-classification", folder / "a", training__steps=40)
    other = tiny_model(folder / "roberta", seed=7)
    data = folder / "a" / "rows" / "rows.csv"
    second = short_run("text-classification", folder / "b", rows=data, training__steps=40, model=str(other))
    return first, second


def test_an_ensemble_predicts_the_mean(runs: tuple[Run, Run], tmp_path: Path) -> None:
    artifact, step = chainrule.merge(runs, tmp_path / "both", method="ensemble", options={"weights": [3, 1]}, **FREE)
    assert artifact.manifest.runtime == "ensemble"
    assert artifact.manifest.loads_in == ("chainrule",)
    assert step.step == "merge --method ensemble"
    assert step.speed is not None
    predictors = [load_predictor(each, precision="float32") for each in (runs[0].artifact, runs[1].artifact, artifact)]
    encoded = predictors[0].encode({"text": ["a good film", "this room was cold and very bad", "it is warm"]})
    ids = torch.from_numpy(encoded.ids[: encoded.offsets[1]][None].astype(np.int64))
    with torch.inference_mode():
        said = [predictor.forward.model(input_ids=ids).logits.softmax(-1) for predictor in predictors]
    torch.testing.assert_close(said[2], 0.75 * said[0] + 0.25 * said[1])
    (row,) = chainrule.predict(artifact, text="a good film")  # type: ignore[misc]
    assert 0.5 <= row["predicted_score"] <= 1
    data = str(runs[0].path.parent / "rows" / "rows.csv")
    evaluated = chainrule.evaluate(artifact, data)
    assert evaluated.metrics[evaluated.primary_metric].value == pytest.approx(step.parity.after)
    server = start_at_once([tmp_path / "both"])
    try:
        answer = server.post("/v1/predict", {"inputs": ["a good film"]}).json()["predictions"][0]
        assert answer["score"] == pytest.approx(row["predicted_score"], abs=2e-5)
    finally:
        server.end()


def test_a_student_of_an_ensemble(runs: tuple[Run, Run], tmp_path: Path) -> None:
    """What the ensemble says is learned by one model."""
    chainrule.merge(runs, tmp_path / "both", method="ensemble", options={"weights": "stacking"}, **FREE)
    told = json.loads((tmp_path / "both" / "ensemble.json").read_text(encoding="utf-8"))
    assert sum(told["weights"]) == pytest.approx(1)
    data, model = runs[0].path.parent / "rows" / "rows.csv", runs[0].path.parent / "model"
    student, step = chainrule.distill(
        tmp_path / "both", str(model), tmp_path / "student", data=str(data), epochs=1, kept=0.1, allow_slower=True
    )
    assert student.artifact.manifest.runtime == "torch"
    assert step.parity.before is not None


@pytest.mark.parametrize("task", ["multi-label-classification", "regression", "token-classification"])
def test_other_tasks(task: str, tmp_path: Path) -> None:
    run = short_run(task, tmp_path / "x")
    stacking = {} if task == "token-classification" else {"weights": "stacking"}
    artifact, step = chainrule.merge([run, run], tmp_path / "both", method="ensemble", options=stacking, **FREE)
    assert step.parity.rows > 0
    if not stacking:  # twice the same model is that model
        assert step.parity.difference == 0
    assert load_predictor(artifact).task.name == task


def test_what_cannot_answer_together_is_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is nothing to put together"):
        chainrule.merge([runs[0]], tmp_path / "out", method="ensemble")
    for wrong in ([1.0], [-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(RecipeError, match="These models cannot be merged like this"):
            chainrule.merge(runs, tmp_path / "out", method="ensemble", options={"weights": wrong})
    lstm = short_run("text-classification", tmp_path / "lstm", model="lstm")
    with pytest.raises(ModelError) as told:
        chainrule.merge([runs[0], lstm], tmp_path / "out", method="ensemble")
    assert [problem.got for problem in told.value.problems] == ["others"]
    answers = short_run("question-answering", tmp_path / "answers")
    with pytest.raises(ModelError) as told:
        chainrule.merge([answers, answers], tmp_path / "out", method="ensemble")
    assert {problem.got for problem in told.value.problems} == {"question-answering"}
    chainrule.merge(runs, tmp_path / "both", method="ensemble", **FREE)
    with pytest.raises(ModelError) as told:
        chainrule.compress(tmp_path / "both", tmp_path / "out", to="prune")
    assert told.value.problems[0].got == "one that was made for ensemble"
    members = tmp_path / "both" / "members"
    shutil.rmtree(members / "1")
    shutil.copytree(members / "0", members / "1")
    with pytest.raises(ModelError, match="The ensemble cannot be loaded"):
        chainrule.predict(tmp_path / "both", text="good")
    (tmp_path / "both" / "ensemble.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="The ensemble cannot be loaded"):
        load_predictor(Artifact.read(tmp_path / "both"))


def test_the_command(runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["merge", *(str(run.path) for run in runs), "--method", "ensemble", "--set", "weights=stacking"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(tmp_path / "out"), "--loss", "100", "--worst", "1000"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "merge --method ensemble:" in shown
    assert "Measured in turn on this machine" in shown
