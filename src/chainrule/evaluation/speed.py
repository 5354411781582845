"""How fast two models predict, in turn: the machine is shared, and its speed differs from one second to the next."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from chainrule.core.artifact import Artifact, Speed
from chainrule.data.encode import Encoded
from chainrule.errors import GateError, Problem
from chainrule.evaluation.parity import NOT_KEPT, Rows
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.system.progress import Display

ROUNDS, SINGLE = 5, 8  # turns; rows one at a time in each of them
MOST_ROWS = 512
FASTER, SLOWER = 1.1, 0.95  # times; turns differ by some hundredths


def speed_of(before: Artifact, after: Artifact, rows: Rows, display: Display) -> Speed:
    """Both models on the same rows, in the number formats they predict in; of those that write, how fast they read.

    Args:
        rows: at most MOST_ROWS of them are read.
    """
    count = min(MOST_ROWS, len(rows.encoded))
    models = [load_predictor(artifact, device="cpu") for artifact in (before, after)]
    if models[0].task.writes:  # what is written is among what they read
        read = [rows.encoded.take(np.arange(count))] * 2
    else:
        read = [model.encode({name: texts[:count] for name, texts in rows.inputs.items()}) for model in models]
    many: list[list[float]] = [[], []]
    single: list[list[float]] = [[], []]
    with display.bar("timing both models in turn", ROUNDS + 1) as bar:
        for turn in range(ROUNDS + 1):  # the first one warms up
            for place, (model, encoded) in enumerate(zip(models, read, strict=True)):
                seconds = _seconds(model, encoded)
                alone = [_seconds(model, encoded.take(np.array([row]))) for row in _spread(len(encoded), turn)]
                if turn:
                    many[place].append(seconds)
                    single[place] += alone
            bar.advance(1)
    rates = [count / median(seconds) for seconds in many]
    waits = [1000 * median(seconds) for seconds in single]
    slow = [1000 * float(np.quantile(seconds, 0.95)) for seconds in single]
    return Speed(
        rows_per_second=(rates[0], rates[1]),
        milliseconds=(waits[0], waits[1]),
        threads=torch.get_num_threads(),
        p95=(slow[0], slow[1]),
    )


def require_faster(speed: Speed, what: str, outcome: str = NOT_KEPT) -> Speed:
    """Refuse a model that is not faster in one way, or that is slower in the other.

    Raises:
        GateError: it is.
    """
    if max(speed.many, speed.single) < FASTER or min(speed.many, speed.single) < SLOWER:
        wanted = f"{FASTER} times as fast with many rows or with one at a time, and not below {SLOWER} in the other"
        got = f"{speed.many:.2f} times with many rows, {speed.single:.2f} times with one at a time"
        todo = "Keep the model before, or allow it for its size: --allow-slower."
        problem = Problem(wanted, got, todo)
        raise GateError(f"{what} gave no faster model on this machine; {outcome}.", [problem])
    return speed


def _seconds(model: Predictor, encoded: Encoded) -> float:
    began = time.perf_counter()
    model.predict(encoded)
    return time.perf_counter() - began


def _spread(rows: int, turn: int) -> list[int]:
    """Some rows from all over, others in each turn."""
    return [(turn + place * max(1, rows // SINGLE)) % rows for place in range(min(SINGLE, rows))]
