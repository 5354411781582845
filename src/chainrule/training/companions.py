"""What is put beside the training rows before step one, kept in the run so that it is the same whenever it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chainrule.core.task import Predictions, Task
from chainrule.data.encode import Encoded
from chainrule.errors import ModelError, Problem, Where
from chainrule.inference.predict import Forward, predict_encoded
from chainrule.system.files import atomic_path
from chainrule.system.progress import Display

COMPANIONS = "companions.safetensors"


def with_companions(
    task: Task, forward: Forward, train: Encoded, options: Any, display: Display, run: Path | None
) -> tuple[Encoded, np.ndarray | None]:
    """The training rows with the texts of others beside them, and which rows those are; None where the task puts none.

    Args:
        forward: of the model before step one, in float32.
        options: the task's own.
        run: the run that goes on or is made again, which has found them; None where they are to be looked for.

    Raises:
        RecipeError: these rows cannot have what the options ask for.
        ModelError: what the run has found cannot be read.
    """
    if task.enrich is None or not task.enrich.check(train.targets, options):
        return train, None

    def read() -> Predictions:
        with display.bar("what the model says before training", len(train)) as bar:
            return predict_encoded(forward, train, task.read, bar)

    found = task.enrich.find(train, read, options) if run is None else _kept(run / COMPANIONS, len(train))
    return task.enrich.add(train, found), found


def keep_companions(folder: Path, found: np.ndarray | None) -> None:
    """Write them into a run folder."""
    if found is not None:
        with atomic_path(folder / COMPANIONS) as path:
            save_file({"rows": np.ascontiguousarray(found)}, path)


def _kept(file: Path, rows: int) -> np.ndarray:
    try:
        found: np.ndarray = load_file(file)["rows"]
        if (
            found.dtype == np.int64
            and found.ndim == 2
            and len(found) == rows
            and 0 <= found.min() <= found.max() < rows
        ):
            return found
        reason = "other numbers"
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = str(error)[:200]
    problem = Problem("the rows that were put beside the training rows", reason, "Train anew.", Where(file=str(file)))
    raise ModelError(f"Cannot read {file}.", [problem])
