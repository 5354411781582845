"""The record of a run: one JSON line per event, written as it happens, and copies to trackers that were asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chainrule.core.artifact import EVENTS
from chainrule.system.extras import require

Sink = Callable[[dict[str, Any]], None]


def event_log(path: Path) -> Sink:
    """Appends each event to a file as one line, with the seconds since 1970 as `time`."""

    def write(event: dict[str, Any]) -> None:
        line = json.dumps(event | {"time": round(time.time(), 3)}, ensure_ascii=False, allow_nan=False)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return write


def every_sink(names: Sequence[str], run_folder: Path) -> Sink:
    """Hands each event to the run's log and to the trackers that were asked for."""
    sinks = [event_log(run_folder / EVENTS), *trackers(names, run_folder)]

    def write(event: dict[str, Any]) -> None:
        for sink in sinks:
            sink(event)

    return write


def trackers(names: Sequence[str], run_folder: Path) -> list[Sink]:
    """The trackers that `training.track` names; they write below the run folder and send nothing anywhere.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    return [_TRACKERS[name](run_folder) for name in names]


def require_trackers(names: Sequence[str]) -> None:
    """Ask for the packages of the trackers before any work is done.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    for name in names:
        require(name, extra=name, purpose=f"--track {name}")


def scalars(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of an event that are worth a curve."""
    if event["event"] == "step":
        return {f"train/{key}": event[key] for key in ("loss", "learning_rate", "gradient_norm")}
    if event["event"] == "evaluation":
        return {f"validation/{key}": value for key, value in event["metrics"].items() if math.isfinite(value)}
    return {}


def _tensorboard(run_folder: Path) -> Sink:
    module = require("torch.utils.tensorboard", extra="tensorboard", purpose="--track tensorboard")
    writer = module.SummaryWriter(log_dir=str(run_folder / "tensorboard"))

    def write(event: dict[str, Any]) -> None:
        for name, value in scalars(event).items():
            writer.add_scalar(name, value, event["step"])
        if event["event"] == "finish":
            writer.close()

    return write


def _mlflow(run_folder: Path) -> Sink:
    mlflow = require("mlflow", extra="mlflow", purpose="--track mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run_folder / 'mlflow.db'}")
    known = client.get_experiment_by_name("chainrule")  # there already where a run goes on
    if known is None:
        experiment = client.create_experiment("chainrule", artifact_location=(run_folder / "mlflow").as_uri())
        run = client.create_run(experiment, run_name=run_folder.name)
    else:
        run = client.search_runs([known.experiment_id])[0]

    def write(event: dict[str, Any]) -> None:
        for name, value in scalars(event).items():
            plain = name.replace("@", "_at_")  # MLflow takes no @ in names
            client.log_metric(run.info.run_id, plain, value, step=event["step"])
        if event["event"] == "finish":
            client.set_terminated(run.info.run_id)

    return write


_TRACKERS: dict[str, Callable[[Path], Sink]] = {"tensorboard": _tensorboard, "mlflow": _mlflow}
