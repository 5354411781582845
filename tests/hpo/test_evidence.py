"""What layers show before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from chainrule.core.recipe import parse_recipe
from chainrule.hpo import evidence
from chainrule.models.inspect import parts
from chainrule.system.progress import Quiet
from chainrule.testing.data import rated, write_csv
from chainrule.training.job import Job
from chainrule.training.run import prepare_job

pytestmark = pytest.mark.unit
SETTINGS = {
    "strategy.name": "full",
    "training.threads": 1,
    "training.precision": "float32",
    "training.accelerate": False,
    "training.steps": 4,
    "optimizer.learning_rate": 1e-3,
}


def job_of(source: Path, model: Path, **settings: Any) -> Job:
    task = settings.pop("task", "text-classification")
    recipe = parse_recipe({"task": task, "model": str(model), "data": str(source)})
    return prepare_job(recipe.replace(SETTINGS | settings), str(source), Quiet())[0]


@pytest.fixture(scope="module")
def job(tiny_bert: Path, reviews: Path) -> Job:
    return job_of(reviews, tiny_bert)


@pytest.mark.parametrize(("signal", "noise", "rows"), [(1.0, 3.0, 8), (0.5, 2.0, 16), (4.0, 0.5, 4)])
def test_the_noise_scale_of_gradients_whose_mean_and_spread_are_known(signal: float, noise: float, rows: int) -> None:
    """One row's gradient is N(μ, σ²·1) in d dimensions: the scale is d·σ² / |μ|²."""
    draw, size, batches = np.random.default_rng(0), 400, 300
    means = signal / np.sqrt(size) + draw.normal(0, noise / np.sqrt(rows), (batches, size))
    found = evidence._scale(float(np.square(means.sum(0)).sum()), float(np.square(means).sum()), batches, rows)
    assert found == pytest.approx(size * noise**2 / signal**2, rel=0.2)


def test_no_signal_is_told_apart_from_much_noise() -> None:
    assert evidence._scale(0.0, 12.0, 4, 8) is None


def test_the_noise_scale_of_a_layer_is_that_of_its_gradients(job: Job) -> None:
    """Against the same estimate from every entry of every batch's gradient in float64."""
    rows = np.arange(64)
    found = evidence.noise_scales(job, rows)
    assert list(found) == ["embeddings", "layer 0", "layer 1", "head"]
    gradients = [_gradient(job, rows[start : start + 16]) for start in range(0, 64, 16)]
    for part in parts(job.model):
        flat = torch.stack([torch.cat([g[name].flatten() for name in part.parameters]) for g in gradients]).double()
        variance, mean = float(flat.var(0).sum()), flat.mean(0)
        signal = float(mean.square().sum()) - variance / 4
        wanted = 16 * variance / signal if signal > 0 else None
        assert found[part.name] == (None if wanted is None else pytest.approx(wanted, rel=0.02)), part.name


def _gradient(job: Job, rows: np.ndarray) -> dict[str, torch.Tensor]:
    job.model.eval()
    batch = evidence._load(job, rows)
    loss = functional.cross_entropy(job.model(**batch.inputs).logits, batch.targets)
    named = {name: parameter for name, parameter in job.model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def test_looking_leaves_no_gradients_and_no_hooks(job: Job) -> None:
    metric, layers = evidence.gather(job, seed=0)
    assert metric == "accuracy"
    assert [layer.layer for layer in layers] == ["embeddings", "layer 0", "layer 1", "head"]
    assert all(parameter.grad is None for parameter in job.model.parameters())
    assert not any(module._forward_hooks for module in job.model.modules())
    assert layers[-1].probe is None


def test_a_probe_reads_what_the_words_say(job: Job) -> None:
    """The telling words decide the label, and the mean of their embeddings tells them; shuffled labels do not."""
    rows = np.arange(len(job.train))
    metric, scores = evidence.probe_scores(job, rows)
    assert metric == "accuracy"
    assert scores["embeddings"] > 0.9
    targets = np.random.default_rng(0).permutation(np.asarray(job.train.targets))
    _, shuffled = evidence.probe_scores(replace(job, train=replace(job.train, targets=targets)), rows)
    assert max(shuffled.values()) < 0.65


def test_where_there_is_nothing_to_tell_apart_nothing_is_probed(job: Job) -> None:
    alike = np.flatnonzero(np.asarray(job.train.targets) == 0)
    assert evidence.probe_scores(job, alike) == (None, {})


def test_a_model_with_numbers_that_are_none_is_passed_over(tiny_bert: Path, reviews: Path) -> None:
    """Training names the module; looking at it is no place to fail."""
    broken = job_of(reviews, tiny_bert)
    with torch.no_grad():
        dict(broken.model.named_parameters())["bert.encoder.layer.1.output.dense.weight"].fill_(torch.nan)
    _, layers = evidence.gather(broken, seed=0)
    assert {layer.layer: layer.probe is not None for layer in layers} == {
        "embeddings": True, "layer 0": True, "layer 1": False, "head": False,
    }  # fmt: skip
    assert all(layer.noise_scale is None for layer in layers if layer.layer.startswith("layer"))


def test_probes_of_numbers(tiny_bert: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rated.csv", rated(300))
    metric, scores = evidence.probe_scores(job_of(source, tiny_bert, task="regression"), np.arange(240))
    assert metric == "r2"
    assert scores["embeddings"] > 0.5


def test_too_few_rows_are_not_probed(job: Job) -> None:
    assert evidence.probe_scores(job, np.arange(3)) == (None, {})
    assert evidence.noise_scales(job, np.arange(1)) == {}
