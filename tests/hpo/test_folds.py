"""`train --folds`: what is judged, what is kept, and how it goes on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.errors import DataError, ModelError, OutputError, RecipeError, StoppedError
from chainrule.evaluation.report import render_report
from chainrule.hpo import folds
from chainrule.system.progress import Quiet
from chainrule.testing.data import rated, sentences, tagged, write_csv
from chainrule.training import trainer
from chainrule.training.building import make_job
from chainrule.training.reproduction import comparable_events

pytestmark = pytest.mark.unit

ROWS = 45
SETTINGS = {
    "training.precision": "float32",
    "training.threads": 1,
    "training.steps": 4,
    "training.batch_size": 16,
    "training.checkpoint_minutes": 1e-9,
    "optimizer.learning_rate": 5e-3,
}


class Told(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


class PowerFailureError(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which some are there more than once."""
    rows = sentences(ROWS - 6)
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", [*rows, *rows[:4], *rows[:2]])


@pytest.fixture(scope="module")
def told() -> Told:
    """What was said while `folded` was made."""
    return Told()


@pytest.fixture(scope="module")
def seen() -> list[dict[str, set[str]]]:
    """The texts of each split for every model that was made for `folded`, in the order of the models."""
    return []


@pytest.fixture(scope="module")
def folded(
    data: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, told: Told, seen: list[dict[str, set[str]]]
) -> Run:
    """A finished run of three folds."""

    def noting(recipe: Any, prepared: Any, display: Any) -> Any:
        seen.append({name: set(part.inputs["text"]) for name, part in prepared.dataset.splits.items()})
        return make_job(recipe, prepared, display)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "make_job", noting)
        return train(data, tiny_bert, tmp_path_factory.mktemp("runs") / "folded", display=told)


def train(
    data: Path, model: Path, out: Path, more: Mapping[str, Any] | None = None, display: Quiet | None = None
) -> Run:
    settings = {**SETTINGS, "training.folds": 3, **(more or {})}
    return chainrule.train(str(data), model=str(model), out=out, settings=settings, display=display)


def predicted(run: Path) -> list[dict[str, np.ndarray]]:
    return [load_file(run / "folds" / str(fold) / "predictions.safetensors") for fold in (1, 2, 3)]


def judged(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluations" / "folds.json").read_text(encoding="utf-8"))
    return found


def test_each_row_is_predicted_once_by_a_model_that_saw_nothing_like_it(
    folded: Run, data: Path, seen: list[dict[str, set[str]]]
) -> None:
    texts = [line.split(",")[0] for line in data.read_text(encoding="utf-8").splitlines()[1:]]
    found = predicted(folded.path)
    assert sorted(np.concatenate([fold["rows"] for fold in found]).tolist()) == list(range(1, ROWS + 1))
    for fold, splits in zip(found, seen[:3], strict=True):
        held = {texts[row - 1] for row in fold["rows"]}
        assert held == splits["test"]
        assert not held & (splits["train"] | splits["validation"])
    assert len(seen) == 4  # the last one is the final model's


def test_the_final_model_is_that_of_a_run_without_folds(
    folded: Run, data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    alone = train(data, tiny_bert, tmp_path / "alone", {"training.folds": None})
    weights = [(run.artifact.path / "model.safetensors").read_bytes() for run in (folded, alone)]
    assert weights[0] == weights[1]
    assert comparable_events(folded.path) == comparable_events(alone.path)
    assert folded.summary["metrics"] == alone.summary["metrics"]
    assert "cross_validation" not in alone.summary


def test_scores_are_of_all_rows_together(folded: Run) -> None:
    found, report = predicted(folded.path), judged(folded.path)
    right = np.concatenate([fold["model/values"] == fold["targets"] for fold in found])
    value = report["metrics"]["accuracy"]
    assert value["value"] == right.mean()
    assert value["low"] < value["value"] < value["high"]
    assert report["rows"] == ROWS
    spread = report["detail"]["folds"]["scores"]["accuracy"]
    each = [float((fold["model/values"] == fold["targets"]).mean()) for fold in found]
    assert spread["values"] == pytest.approx(each)
    assert spread["mean"] == pytest.approx(statistics.mean(each))
    assert spread["deviation"] == pytest.approx(statistics.stdev(each))
    tfidf = np.concatenate([fold["tfidf/values"] == fold["targets"] for fold in found])
    assert report["baselines"]["tfidf"]["accuracy"]["value"] == tfidf.mean()
    other = {"majority": np.concatenate([fold["majority/values"] == fold["targets"] for fold in found]), "tfidf": tfidf}
    assert report["verdict"]["difference"] == pytest.approx(right.mean() - other[report["verdict"]["baseline"]].mean())
    summary = folded.summary["cross_validation"]
    assert summary["metrics"]["accuracy"] == value
    assert summary["over_folds"]["accuracy"] == {key: spread[key] for key in ("mean", "deviation")}


def test_the_baseline_is_chosen_by_validation_alone(folded: Run) -> None:
    summaries = [Run(folded.path / "folds" / str(fold)).summary for fold in (1, 2, 3)]
    means = {
        name: np.mean([summary["baselines_on_validation"][name] for summary in summaries])
        for name in ("majority", "tfidf")
    }
    best = "tfidf" if means["tfidf"] > means["majority"] else "majority"
    assert judged(folded.path)["verdict"]["baseline"] == best


def test_no_weights_of_folds_are_kept(folded: Run) -> None:
    kept = {path.relative_to(folded.path).as_posix() for path in (folded.path / "folds").rglob("*") if path.is_file()}
    names = ("check.json", "environment.json", "events.jsonl", "inputs.json", "predictions.safetensors", "recipe.yaml")
    more = ("resolved.yaml", "started.json", "summary.json")
    assert kept == {f"folds/{fold}/{name}" for fold in (1, 2, 3) for name in (*names, *more)}


def test_it_is_told_what_was_scored(folded: Run, told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    said = "\n".join(told.lines)
    assert "3 folds and then the final model: 4 trainings of about 4 steps, which take about" in said
    rows = Run(folded.path / "folds" / "2").summary["rows"]
    sizes = f"{rows['train']} train, {rows['validation']} validation rows, {rows['test']} held out."
    assert f"Fold 2 of 3: {sizes}" in said
    assert "The final model, trained as without folds:" in said
    scored = "3 models of the same recipe, each on the rows it was trained without; not the final model"
    assert folded.summary["cross_validation"]["scored"] == scored
    assert "This is about 3 models of this recipe on these 45 rows" in folded.summary["cross_validation"]["verdict"]
    card = (folded.artifact.path / "README.md").read_text(encoding="utf-8")
    assert "Measured on 45 rows of reviews.csv by cross-validation in 3 folds." in card
    assert "This model was trained afterwards and was not scored itself." in card
    page = (folded.path / "report.html").read_text(encoding="utf-8")
    assert page == render_report(folded.path)
    for text in ("Cross-validated in 3 folds", "3 折交叉验证", "models of this recipe", "none of them", "on average"):
        assert text in page
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(folded.path)])
    out = capsys.readouterr().out
    assert not stop.value.code
    assert f"scored: {scored}\n" in out
    assert "on 45 rows; mean over 3 folds" in out
    assert "verdict on validation" not in out


def at_step(step: int, fail: Any, patch: pytest.MonkeyPatch) -> None:
    """Call `fail` after so many steps of all trainings together."""
    real, made = trainer._record_step, [0]

    def record(*arguments: Any) -> None:
        real(*arguments)
        made[0] += 1
        if made[0] == step:
            fail()

    patch.setattr(trainer, "_record_step", record)


def fail(*arguments: Any) -> None:
    raise PowerFailureError


def interrupt(where: str, patch: pytest.MonkeyPatch) -> None:
    if where.startswith("step"):
        at_step(int(where.removeprefix("step ")), fail, patch)
    else:
        patch.setattr(folds, where, fail)


INTERRUPTIONS = (
    "step 2",  # in the first fold
    "fitted_baselines",  # after its steps
    "_tell_fold",  # when it is judged
    "step 5",  # in the third fold, which is judged then
    "step 3",  # in the final training
    "_tell_in_run",  # after it
)


def test_goes_on_to_the_same_end(
    folded: Run, data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_folds = []
    for where in INTERRUPTIONS:
        with monkeypatch.context() as patch:
            interrupt(where, patch)
            begun = (tmp_path / "run").exists()
            with pytest.raises(PowerFailureError):
                chainrule.resume(tmp_path / "run") if begun else train(data, tiny_bert, tmp_path / "run")
        judged_folds.append(len(list((tmp_path / "run" / "folds").glob("*/summary.json"))))
    assert judged_folds == [0, 0, 1, 2, 3, 3]
    run = chainrule.resume(tmp_path / "run")
    assert (run.artifact.path / "model.safetensors").read_bytes() == (
        folded.artifact.path / "model.safetensors"
    ).read_bytes()
    assert comparable_events(run.path) == comparable_events(folded.path)
    for fold in ("1", "2", "3"):
        first, second = (path / "folds" / fold for path in (run.path, folded.path))
        assert (first / "predictions.safetensors").read_bytes() == (second / "predictions.safetensors").read_bytes()
        assert comparable_events(first) == comparable_events(second)
        assert not (first / "checkpoints").exists()
    assert judged(run.path) == judged(folded.path) | {"artifact": "run"}


def test_control_c_tells_how_to_go_on(
    data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(StoppedError, match=r"^Stopped by Ctrl-C after step 2 of fold 2\.") as caught:
        train(data, tiny_bert, out)
    (problem,) = caught.value.problems
    assert (problem.expected, problem.got, problem.todo) == (
        "3 folds and the final model",
        "1 judged, and a part of fold 2; everything so far is kept",
        f"Go on with: chainrule train --resume {out}",
    )
    rows = sentences(ROWS, seed=3)
    changed = write_csv(tmp_path / "changed.csv", rows)
    with pytest.raises(DataError, match="has changed since it began"):
        chainrule.resume(out, str(changed))


def test_a_damaged_fold_is_named(folded: Run, tmp_path: Path) -> None:
    file = tmp_path / "predictions.safetensors"
    file.write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="cannot be read") as caught:
        folds._read(tmp_path, np.zeros(1))
    assert "this fold is trained again" in caught.value.problems[0].todo


@pytest.mark.parametrize(
    ("settings", "message", "told_of"),
    [
        (
            {"training.folds": 1},
            "The recipe has 1 problem.",
            ("greater than or equal to 2", "1", "Change 'training.folds'."),
        ),
        (
            {"training.minutes": 5},
            "Folds and minutes do not go together.",
            (
                "the length of each training by epochs or steps, since there will be several",
                "5 minutes and folds",
                "Leave --minutes out; what the folds will cost is told before the first.",
            ),
        ),
        (
            {"task": "text-generation"},
            "The task 'text-generation' cannot be cross-validated.",
            (
                "a task whose models are compared with baselines fitted on the same folds",
                "text-generation",
                "Leave --folds out, and evaluate on a test split.",
            ),
        ),
    ],
)
def test_what_does_not_go_with_folds(
    settings: dict[str, Any], message: str, told_of: tuple[str, ...], data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        train(data, tiny_bert, tmp_path / "run", settings)
    (problem,) = caught.value.problems
    assert (caught.value.message, problem.expected, problem.got, problem.todo) == (message, *told_of)
    assert not (tmp_path / "run").exists()


def test_too_many_folds_leave_nothing_behind(data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are too few rows for so many folds"):
        chainrule.train(str(data), model=str(tiny_bert), out=tmp_path / "run", folds=40)
    assert not (tmp_path / "run").exists()


def test_the_flag_is_the_recipe_s_key(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", str(data), "--folds", "1", "--out", str(tmp_path / "run"), "--json"])
    assert stop.value.code == 2
    (problem,) = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert problem["where"]["field"] == "training.folds"


def test_the_page_stays_about_all_rows(folded: Run, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folded.path, tmp_path / "run"))
    chainrule.evaluate(copy, str(data), split="test")
    assert (copy / "evaluations" / "test.json").is_file()
    assert "Cross-validated in 3 folds" in (copy / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_done_with_the_run_or_a_fold(folded: Run, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="A cross-validated run cannot be reproduced") as caught:
        chainrule.reproduce(folded, out=tmp_path / "again")
    resolved = folded.path / "resolved.yaml"
    todo = f"Train anew with the choices it made, and compare: chainrule train --recipe {resolved}"
    assert caught.value.problems[0].todo == todo
    for verb in (chainrule.resume, chainrule.reproduce):
        with pytest.raises(OutputError, match="is no run of its own") as caught:
            verb(folded.path / "folds" / "2")
        assert caught.value.problems[0].todo == f"Take the whole run: {folded.path}"


def test_the_resolved_recipe_gives_the_same_again(folded: Run, tmp_path: Path) -> None:
    run = chainrule.train(recipe=folded.path / "resolved.yaml", out=tmp_path / "folded")
    assert judged(run.path) == judged(folded.path)


@pytest.mark.parametrize(
    ("task", "rows"), [("regression", rated(36)), ("multi-label-classification", tagged(36))], ids=["number", "classes"]
)
def test_other_targets(task: str, rows: list[dict[str, str]], tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", rows)
    run = train(data, tiny_bert, tmp_path / "run", {"task": task, "training.folds": 2, "training.steps": 1})
    report = judged(run.path)
    assert report["rows"] == 36
    assert report["verdict"]["difference"] is not None
    assert report["detail"]["folds"]["count"] == 2
