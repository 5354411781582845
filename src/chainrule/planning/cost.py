"""Seconds and memory of a training: arithmetic and bytes, counted, and set to the pace of the steps that were seen.

Kaplan et al. (2020), Scaling Laws for Neural Language Models, section 2.1: two operations a weight and token forward.
The backward takes as many again for the inputs of each layer it goes through, and for each weight that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from chainrule.core.prediction import Prediction
from chainrule.planning.machine import Machine
from chainrule.training.measure import Load, Measured, Work

MIB = 2**20
WEIGHT_BYTES, TRAINED_BYTES = 4, 20  # gradient, AdamW's two moments, copies of the start and of the best, in float32
UPDATE_BYTES = 28  # read and written by an optimizer step, for each trained number
TOKEN_BYTES = 34  # a layer keeps so many a token and hidden number for its backward, in two-byte numbers
EFFICIENCY = 0.25  # of the matrix products' peak, about; for what is only counted
SCATTERED = 1.25  # of what the widest batch adds, once more: gaps between pieces of many sizes; LOG.md, 2026-11-23
REWEIGHTED = 8  # times
MOST_SHAPES = 100  # of which the libraries keep code: oneDNN's 1,024 primitives, about ten a shape


@dataclass(frozen=True)
class Pace:
    """What turns counted work into seconds: of each optimizer step, per byte that it moves, per operation."""

    step: float
    byte: float
    operation: float


def operations(work: Work, load: Load) -> np.ndarray:
    """(n,) floating-point operations of each step, forward and backward."""
    layers = max(work.layers - work.frozen, 0)
    each, found = work.weights / max(work.layers, 1), np.zeros(len(load.tokens))
    for number, stage in enumerate(work.stages):
        end = work.stages[number + 1].start if number + 1 < len(work.stages) else 1.0
        now = (load.places >= stage.start - 1e-9) & (load.places < end - 1e-9)
        passed = (
            layers + stage.reach
        )  # forward through those above the frozen ones, backward through those below the head
        products = 2.0 * load.tokens * (each * passed + stage.weights)
        attention = 4.0 * load.squares * work.hidden * (layers + 2 * stage.reach)
        found[now] = (products + attention)[now]
    return found


def moved(work: Work, load: Load) -> np.ndarray:
    """(n,) bytes that each optimizer step moves."""
    trained = np.zeros(len(load.tokens))
    for stage in work.stages:
        trained[load.places >= stage.start - 1e-9] = stage.trained
    return UPDATE_BYTES * trained


def assumed_pace(machine: Machine, precision: str) -> Pace:
    """What the machine's peaks let expect of a model that was not tried."""
    rate = machine.gigaflops["bfloat16" if precision == "bfloat16" else "float32"]
    return Pace(0.0, 1e-9 / machine.gigabytes, 1e-9 / (EFFICIENCY * rate))


def seen_pace(measured: Measured, assumed: Pace) -> Pace:
    """The pace of the steps that were made, those of the first pass left out where there are others.

    A fit of non-negative coefficients to relative errors, so that narrow batches weigh as much as wide ones, by
    least squares weighted anew until they are about least absolute errors: what other work delays is left out.
    """
    work, seconds = measured.work, measured.seconds
    columns = np.stack([np.ones(len(seconds)), moved(work, measured.made), operations(work, measured.made)], axis=1)
    warm = slice(measured.warm, None)
    columns, seconds = columns[warm], seconds[warm]
    scales = np.maximum(columns.max(axis=0), 1e-30)
    relative, weights = columns / scales / seconds[:, None], np.ones(len(seconds))
    for _ in range(REWEIGHTED):
        found, _ = nnls(relative * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(relative @ found - 1), 0.01))
    step, byte, operation = (found / scales).tolist()
    if step == byte == operation == 0:
        return assumed
    return Pace(step, byte, operation)


def seconds_of(measured: Measured, pace: Pace) -> float:
    """Of the whole training as `train` reports them."""
    work, load = measured.work, measured.whole
    steps = pace.step + pace.byte * moved(work, load) + pace.operation * operations(work, load)
    total = float(steps.sum())
    if len(measured.seconds):  # the first steps are slower: what they took beyond the pace comes once
        first = slice(0, measured.warm)
        made = pace.step + pace.byte * moved(work, measured.made) + pace.operation * operations(work, measured.made)
        total += max(0.0, float((measured.seconds - made)[first].sum()))
    return total + _trunk_seconds(measured)


def _trunk_seconds(measured: Measured) -> float:
    """Of the frozen layers' one run over all rows."""
    if measured.trunk is None or measured.trunk_piece is None:
        return 0.0
    work, counts = measured.work, []
    for load in (measured.trunk, measured.trunk_piece):
        products = 2.0 * load.tokens * work.weights / max(work.layers, 1) + 4.0 * load.squares * work.hidden
        counts.append(float(products.sum()))
    return measured.trunk_seconds * counts[0] / max(counts[1], 1.0)


def peak_of(measured: Measured, resident: int) -> float:
    """MiB of the whole training: as seen, else counted.

    Args:
        resident: bytes of the process before a model is loaded.
    """
    if measured.peak_memory_mb is not None:
        planned, made = (len(np.unique(load.tokens)) for load in (measured.whole, measured.made))
        if len(measured.whole.tokens) <= len(measured.seconds):
            return measured.peak_memory_mb
        shapes = max(0, min(planned, MOST_SHAPES) - made)
        return measured.peak_memory_mb + measured.shape_mb * shapes + SCATTERED * measured.wide_mb
    work = measured.work
    fixed = WEIGHT_BYTES * work.parameters + TRAINED_BYTES * work.trained
    reach = max((stage.reach for stage in work.stages), default=0)
    widths = measured.whole.squares / np.maximum(measured.whole.tokens, 1)
    tokens = min(float(measured.whole.tokens.max()), float(measured.micro_batch_tokens or np.inf))
    kept = tokens * (TOKEN_BYTES * work.hidden + 5 * float(widths.max()) * max(work.hidden // 64, 1)) * max(reach, 1)
    size = 1.0 if measured.precision == "bfloat16" else 2.0
    return (resident + fixed + size * kept) / MIB


def predict(measured: Measured, pace: Pace, resident: int) -> Prediction:
    """What the training will take."""
    return Prediction(
        seconds=round(seconds_of(measured, pace), 2),
        peak_memory_mb=round(peak_of(measured, resident), 1),
        steps=len(measured.whole.tokens),
        measured_steps=len(measured.seconds),
    )
