"""What every strategy must do: train exactly what it says, learn, and leave a plain model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core.recipe import Optimizer, Spec, Structure
from chainrule.errors import RecipeError
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import STRATEGIES, make_strategy
from chainrule.testing.data import sentences, write_csv

pytestmark = pytest.mark.contract
OPTIONS: dict[str, dict[str, Any]] = {"partial": {"top": 1}}


def load(folder: Path) -> Any:
    tokenizer = load_tokenizer(str(folder))
    return load_classifier(str(folder), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)


def ignore(line: str) -> None:
    """Where what a strategy tells does not matter."""


def plain_name(parameter: str) -> str:
    """The parameter of the plain model that a trained one ends up in."""
    for part in ("base_model.model.", ".lora_A.default", ".lora_B.default", ".modules_to_save.default"):
        parameter = parameter.replace(part, "")
    return parameter


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_phase_names_parameters_of_the_model_once(name: str, tiny_bert: Path) -> None:
    strategy = make_strategy(Spec(name=name, options=OPTIONS.get(name, {})))
    model = strategy.prepare(load(tiny_bert), ignore)
    phases = strategy.phases(model, Optimizer(learning_rate=strategy.default_learning_rate), 100)
    there = {parameter: value.ndim for parameter, value in model.named_parameters()}
    assert phases[0].start_step == 0
    for phase in phases:
        names = [parameter for group in phase.groups for parameter in group.names]
        assert len(names) == len(set(names))
        assert set(names) <= set(there)
        assert all(group.weight_decay == 0 for group in phase.groups if any(there[n] < 2 for n in group.names))


@pytest.mark.parametrize("name", STRATEGIES)
def test_trains_what_it_says_and_nothing_else(name: str, tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", sentences(160))
    settings: dict[str, Any] = {
        "model": str(tiny_bert),
        "strategy.name": name,
        "strategy.options": OPTIONS.get(name, {}),
    }
    settings |= {"training.epochs": 12, "optimizer.learning_rate": 2e-2, "schedule.warmup": 0.0, "training.threads": 1}
    run = chainrule.train(str(data), out=tmp_path / "run", settings={**settings, "training.precision": "float32"})
    before = dict(load(tiny_bert).state_dict())
    after = load_file(run.artifact.path / "model.safetensors")
    changed = {key for key, value in after.items() if _digest(value) != _digest(before[key])}
    strategy = make_strategy(Spec(name=name, options=OPTIONS.get(name, {})))
    prepared = strategy.prepare(load(tiny_bert), ignore)
    phases = strategy.phases(prepared, Optimizer(learning_rate=1e-2), 100)
    trained = {parameter for phase in phases for group in phase.groups for parameter in group.names}
    said = {plain_name(parameter) for parameter in trained}
    assert changed <= said
    assert {key for key in said if before[key].ndim >= 2} <= changed
    sizes = {key: parameter.numel() for key, parameter in prepared.named_parameters()}
    assert run.summary["trained_parameters"] == sum(sizes[key] for key in trained)
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.01


def test_more_layers_than_there_are(tiny_bert: Path) -> None:
    strategy = make_strategy(Spec(name="partial", options={"top": 3}))
    with pytest.raises(RecipeError) as caught:
        strategy.phases(load(tiny_bert), Optimizer(learning_rate=1e-3), 10)
    assert str(caught.value.problems[0]) == (
        "field 'strategy.options.top': expected at most 2, the layers this model has, got 3. "
        "Lower it, or use --strategy full."
    )


def test_unknown_names_and_options_list_what_there_is() -> None:
    with pytest.raises(RecipeError) as caught:
        make_strategy(Spec(name="fulll"))
    assert caught.value.problems[0].expected == "one of full, partial, head, lora"
    with pytest.raises(RecipeError) as caught:
        make_strategy(Spec(name="partial", options={"topp": 2}))
    assert str(caught.value.problems[0]) == (
        "field 'strategy.options.topp': expected one of the keys top, got the unknown key 'topp'. "
        "Correct the spelling or remove it."
    )


def _digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
