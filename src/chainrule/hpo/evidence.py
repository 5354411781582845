"""What a few batches tell before anything is trained: what each layer knows already, and how sure its gradient is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chainrule.core.choice import LayerEvidence
from chainrule.data.batch import collate
from chainrule.inference.predict import evaluating
from chainrule.models.inspect import parts
from chainrule.models.pooling import mean
from chainrule.training.job import Job
from chainrule.training.watch import sampled_rows

PROBED_ROWS = 512
PROBED_AT_ONCE = 32
BATCHES = 8
BATCH_ROWS = 16
PENALTIES = np.logspace(0, 5, 6)
FOLDS = 5


def gather(job: Job, seed: int) -> tuple[str | None, tuple[LayerEvidence, ...]]:
    """Look at each layer of a model that nothing is changed in.

    Args:
        job: with every parameter trainable, without our kernels, which leave out what the last layer need not compute.

    Returns:
        What the probes' scores are, None where there are none, and what each layer shows, the lowest first.
    """
    rows = np.random.default_rng([seed, 1]).permutation(len(job.train))
    with evaluating(job.model):
        scales = noise_scales(job, rows)
        metric, scores = probe_scores(job, np.sort(rows[:PROBED_ROWS]))
    found = [part.name for part in parts(job.model) if part.name in scales or part.name in scores]
    return metric, tuple(
        LayerEvidence(layer=name, probe=scores.get(name), noise_scale=scales.get(name)) for name in found
    )


def probe_scores(job: Job, rows: np.ndarray) -> tuple[str | None, dict[str, float]]:
    """How well a linear model tells the targets from the mean over the tokens of each layer's output.

    Ridge regression, on one-hot targets where they are classes, cross-validated: what counts are rows it was not fitted
    on. Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes.

    Returns:
        "accuracy" or "r2" with the score of each layer; nothing for tasks whose rows have no target as a whole, and
        where there is nothing to tell apart.
    """
    kind, targets = job.task.target.kind, job.train.targets
    whole = kind in ("class", "classes", "number") and job.train.sequences is None
    if not whole or targets is None or len(rows) < FOLDS:
        return None, {}
    wanted = np.asarray(targets[rows], dtype=np.float64)
    classes = np.unique(targets[rows]) if kind == "class" else np.zeros(0)
    if len(classes) == 1:  # of a class with very few rows none may be among them
        return None, {}
    if kind == "class":
        wanted = (targets[rows][:, None] == classes[None]).astype(np.float64)
    scores = {}
    for name, states in _mean_states(job, rows).items():
        if not np.isfinite(states).all():  # training will say where
            continue
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
        found = cross_val_predict(model, states, wanted, cv=KFold(FOLDS, shuffle=True, random_state=0))
        is_class = kind == "class"
        score = accuracy_score(targets[rows], classes[found.argmax(1)]) if is_class else r2_score(wanted, found)
        scores[name] = round(float(score), 4)
    return "accuracy" if kind == "class" else "r2", scores


def noise_scales(job: Job, rows: np.ndarray) -> dict[str, float | None]:
    """The gradient noise scale of each layer: tr(Σ) / |G|², in rows, where Σ is the covariance of one row's gradient.

    McCandlish et al. (2018), An Empirical Model of Large-Batch Training, section 2.2 and appendix A.1: from the mean of
    several batches' gradients and what they differ by. None where the mean is no more than the noise explains.
    """
    size = min(BATCH_ROWS, max(1, len(rows) // 4))
    batches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)][:BATCHES]
    if len(batches) < 2:
        return {}
    named = dict(job.model.named_parameters())
    sums = {name: np.zeros(2) for name in named}  # Σ over entries of (sum over batches)², and of the sum of squares
    means: dict[str, torch.Tensor] = {}
    for batch in batches:
        for name, gradient in _gradients(job, batch):
            means[name] = means.get(name, torch.zeros(())) + gradient
            sums[name][1] += float(gradient.square().sum())
    for name, total in means.items():
        sums[name][0] = float(total.square().sum())
    scales: dict[str, float | None] = {}
    for part in parts(job.model):
        seen = [name for name in part.parameters if name in means]
        weights = np.array([named[name].numel() / means[name].numel() for name in seen])
        squares = (np.stack([sums[name] for name in seen]) * weights[:, None]).sum(0) if seen else np.zeros(2)
        scales[part.name] = _scale(squares[0], squares[1], len(batches), size)
    return scales


def _scale(square_of_sum: float, sum_of_squares: float, batches: int, rows: int) -> float | None:
    """tr(Σ) / |G|² from gradients that are means over `rows` rows."""
    mean_square = square_of_sum / batches**2
    variance = (sum_of_squares - batches * mean_square) / (batches - 1)
    signal = mean_square - variance / batches
    return float(f"{rows * variance / signal:.3g}") if 0 < signal < math.inf else None


def _gradients(job: Job, rows: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradient of the mean loss of these rows, for each parameter a sample of its rows in float32."""
    job.model.zero_grad(set_to_none=True)
    _, count = job.objective.accumulate(job.model, _load(job, rows))
    for name, parameter in job.model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            yield name, sampled_rows(gradient) / count
    job.model.zero_grad(set_to_none=True)


@torch.inference_mode()
def _mean_states(job: Job, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of each layer with an output of its own (rows, hidden): the mean over a row's tokens."""
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(rows), PROBED_AT_ONCE):
        batch = _load(job, rows[start : start + PROBED_AT_ONCE])
        with _outputs(job.model) as seen:
            job.model(**batch.inputs)
        for name, states in seen.items():
            found.setdefault(name, []).append(mean(states.float(), batch.inputs.get("attention_mask")))
    return {name: torch.cat(pieces).cpu().numpy() for name, pieces in found.items()}


@contextmanager
def _outputs(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, what each layer but the head gives is put down: (rows, tokens, hidden)."""
    seen: dict[str, torch.Tensor] = {}

    def reader(name: str) -> Any:
        def read(module: Any, inputs: Any, output: Any) -> None:
            values = output[0] if isinstance(output, tuple) else output
            if isinstance(values, torch.Tensor) and values.ndim == 3:
                seen[name] = values

        return read

    with ExitStack() as hooks:
        for part in parts(model):
            if part.module and part.name != "head":
                hooks.callback(model.get_submodule(part.module).register_forward_hook(reader(part.name)).remove)
        yield seen


def _load(job: Job, rows: np.ndarray) -> Any:
    forward = job.forward
    return collate(job.train, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)
