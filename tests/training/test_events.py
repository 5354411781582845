"""The record of a run, and its copies in other trackers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import MissingExtraError
from chainrule.system.extras import require
from chainrule.training.events import event_log, scalars

pytestmark = pytest.mark.unit


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    write = event_log(tmp_path / "events.jsonl")
    write({"event": "step", "step": 1, "loss": 0.5})
    write({"event": "finish", "step": 1})
    events = list(Run(tmp_path).events())
    assert [event["event"] for event in events] == ["step", "finish"]
    assert all(event["time"] > 1e9 for event in events)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st', encoding="utf-8")
    assert len(list(Run(tmp_path).events())) == 1


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        event_log(tmp_path / "events.jsonl")({"event": "step", "loss": math.nan})


def test_the_scalars_of_an_event() -> None:
    step = {"event": "step", "step": 1, "loss": 0.5, "learning_rate": 1e-5, "gradient_norm": 2.0, "rows": 3}
    assert scalars(step) == {"train/loss": 0.5, "train/learning_rate": 1e-5, "train/gradient_norm": 2.0}
    assert scalars({"event": "evaluation", "step": 1, "metrics": {"f1": 0.5}}) == {"validation/f1": 0.5}
    assert scalars({"event": "finish", "step": 1}) == {}


def test_a_missing_package_names_the_pip_line() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="mlflow", purpose="--track mlflow")
    assert caught.value.message == "--track mlflow needs an optional package: pip install 'chainrule[mlflow]'"
    assert caught.value.problems[0].expected == "the Python package 'no_such_package'"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_trackers_get_the_same_numbers(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    settings = {"model": str(tiny_bert), "training.track": ["tensorboard", "mlflow"], "training.epochs": 1}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings={**settings, "training.precision": "float32"})
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("chainrule")
    tracked = client.search_runs([experiment.experiment_id])[0]
    history = sorted(client.get_metric_history(tracked.info.run_id, "train/loss"), key=lambda point: point.step)
    assert [point.value for point in history] == pytest.approx(losses)
    assert tracked.info.status == "FINISHED"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert [point.value for point in board.Scalars("train/loss")] == pytest.approx(losses)
    assert json.loads((run.path / "summary.json").read_text(encoding="utf-8"))["steps"] == len(losses)
