"""What every strategy must do: train exactly what it says, learn, and leave a model that loads as it was."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core.recipe import Optimizer, Spec, Structure
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded, encode
from chainrule.errors import RecipeError
from chainrule.models.accelerate import accelerate, restore
from chainrule.models.adapters import plain_model
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import STRATEGIES, make_strategy, refuse_misfit
from chainrule.strategies.base import Strategy
from chainrule.tasks import TASKS
from chainrule.tasks.objectives import class_objective
from chainrule.testing.data import sentences, write_csv
from chainrule.training.loop import Stepping, training_steps
from chainrule.training.optimizers import make_optimizer

pytestmark = pytest.mark.contract
CPU = torch.device("cpu")
STEPS = 8
# For models of two layers; all others take what they have.
OPTIONS: dict[str, dict[str, Any]] = {"partial": {"top": 1}}


def load(folder: Path) -> Any:
    tokenizer = load_tokenizer(str(folder))
    return load_classifier(str(folder), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)


def made(name: str) -> Strategy:
    return make_strategy(Spec(name=name, options=OPTIONS.get(name, {})))


def ignore(line: str) -> None:
    """Where what a strategy tells does not matter."""


@pytest.fixture(scope="module")
def rows(tiny_bert: Path) -> Encoded:
    chosen = sentences(64)
    targets = np.array([row["label"] == "positive" for row in chosen], dtype=np.int64)
    return encode(load_tokenizer(str(tiny_bert)), {"text": [row["text"] for row in chosen]}, targets, 64)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_phase_names_parameters_of_the_model_once(name: str, tiny_bert: Path) -> None:
    strategy = made(name)
    model = strategy.prepare(load(tiny_bert), ignore)
    phases = strategy.phases(model, Optimizer(learning_rate=strategy.default_learning_rate), 100)
    there = {parameter: value.ndim for parameter, value in model.named_parameters()}
    starts = [phase.start_step for phase in phases]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    for phase in phases:
        names = [parameter for group in phase.groups for parameter in group.names]
        assert len(names) == len(phase.names)
        assert phase.names <= set(there)
        assert all(group.weight_decay == 0 for group in phase.groups if any(there[n] < 2 for n in group.names))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_runs_of_few_steps_have_phases_too(name: str, steps: int, tiny_bert: Path) -> None:
    strategy = made(name)
    model = strategy.prepare(load(tiny_bert), ignore)
    starts = [phase.start_step for phase in strategy.phases(model, Optimizer(learning_rate=1e-3), steps)]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < steps


@pytest.mark.parametrize("numerics", ["plain float32", "float32", "bfloat16"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_phase_moves_what_it_names_and_nothing_else(name: str, numerics: str, tiny_bert: Path, rows: Encoded) -> None:
    """Checksums of everything that is frozen, while and after it is frozen."""
    strategy = made(name)
    model = strategy.prepare(load(tiny_bert), ignore)
    if numerics != "plain float32":
        accelerate(plain_model(model), CPU)
    phases = strategy.phases(model, Optimizer(learning_rate=1e-2), STEPS)
    steps = training_steps(
        model,
        class_objective(Spec(name="default"), np.asarray(rows.targets)),
        [np.arange(8 * place, 8 * place + 8) for place in range(STEPS)],
        phases,
        partial(make_optimizer, Optimizer()),
        Stepping(
            pieces=lambda places: [places],
            load=lambda places: collate(rows, places, pad_id=0, left=False, device=CPU),
            autocast=partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=numerics == "bfloat16"),
            factor=lambda step: 1.0,
            max_gradient_norm=1.0,
        ),
    )
    before = digests(model)
    for step in steps:
        assert np.isfinite(step.loss)
        after, named = digests(model), phase_of(phases, step.step - 1).names
        moved = {parameter for parameter, digest in after.items() if digest != before[parameter]}
        assert moved <= named, "a frozen parameter has moved"
        if step.step > 2:  # the second factor of a low-rank update begins at 0, and so does the first one's gradient
            assert {parameter for parameter in named if dict(model.named_parameters())[parameter].ndim >= 2} <= moved
        before = after
    restore(plain_model(model))


def phase_of(phases: list[Any], step: int) -> Any:
    return [phase for phase in phases if phase.start_step <= step][-1]


def digests(model: torch.nn.Module) -> dict[str, str]:
    return {name: _digest(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_learns_and_its_model_loads_as_it_was(
    name: str, tiny_bert: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    data = real_rows(shared_data("sst2"), tmp_path / "data.csv", 120)
    run = train(name, data, tiny_bert, tmp_path / "run")
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.01
    report = chainrule.evaluate(run, str(data), split="validation")
    for metric in ("accuracy", "loss"):
        assert report.metrics[metric].value == pytest.approx(run.summary["metrics"][metric], abs=1e-5)

    strategy = made(name)
    prepared = strategy.prepare(load(tiny_bert), ignore)
    phases = strategy.phases(prepared, Optimizer(learning_rate=1e-2), run.summary["steps"])
    trained: set[str] = set().union(*(phase.names for phase in phases))
    sizes = {key: parameter.numel() for key, parameter in prepared.named_parameters()}
    assert run.summary["trained_parameters"] == sum(sizes[key] for key in trained)
    weights = run.artifact.path / "model.safetensors"
    if weights.is_file():
        before, after = dict(load(tiny_bert).state_dict()), load_file(weights)
        changed = {key for key, value in after.items() if _digest(value) != _digest(before[key])}
        assert changed <= set().union(*map(plain_names, trained))
        assert {"classifier.weight"} <= changed


def train(name: str, data: Path, model: Path, out: Path, **settings: Any) -> Any:
    """40 steps in float32."""
    settings = {"model": str(model), "strategy.name": name, "strategy.options": OPTIONS.get(name, {}), **settings}
    settings |= {"training.steps": 40, "training.batch_size": 16, "optimizer.learning_rate": 1e-2}
    settings |= {"schedule.warmup": 0.0, "training.threads": 1, "training.precision": "float32"}
    return chainrule.train(str(data), out=out, settings=settings)


def real_rows(folder: Path, out: Path, count: int) -> Path:
    """The first rows of a real data set."""
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        chosen = [{"text": row["text"], "label": row["label"]} for row in islice(csv.DictReader(file), count)]
    return write_csv(out, chosen)


def plain_names(parameter: str) -> set[str]:
    """The parameters of the plain model that a trained one ends up in."""
    for part in ("base_model.model.", ".lora_A.default", ".lora_B.default", ".modules_to_save.default"):
        parameter = parameter.replace(part, "")
    layer, is_scale, _ = parameter.replace(".lora_magnitude_vector.default", "").partition(".ia3_l.default")
    return {f"{layer}.weight", f"{layer}.bias"} if is_scale else {layer}


def _digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_task_fits_or_is_refused_with_a_reason(name: str) -> None:
    for task in TASKS.values():
        reason = STRATEGIES[name].misfit(task)
        if reason is None:
            refuse_misfit(name, task)
            continue
        with pytest.raises(RecipeError) as caught:
            refuse_misfit(name, task)
        assert caught.value.message == f"The strategy {name!r} does not go together with {task.name}."
        assert reason in caught.value.problems[0].got
        assert "one of full, " in caught.value.problems[0].expected


def test_a_misfit_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    settings = {"task": "text-generation", "model": "smollm2", "strategy": "head"}
    with pytest.raises(RecipeError, match="does not go together"):
        chainrule.train("no-such-file.csv", out=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_unknown_names_and_options_list_what_there_is() -> None:
    with pytest.raises(RecipeError) as caught:
        make_strategy(Spec(name="fulll"))
    assert caught.value.problems[0].expected == f"one of {', '.join(STRATEGIES)}"
    with pytest.raises(RecipeError) as caught:
        make_strategy(Spec(name="partial", options={"topp": 2}))
    assert str(caught.value.problems[0]) == (
        "field 'strategy.options.topp': expected one of the keys embeddings, first, parameters, top, "
        "got the unknown key 'topp'. Correct the spelling or remove it."
    )
