"""The projection of a student's states: trained with whatever strategy, and gone at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import Spec
from chainrule.inference.predict import load_predictor
from chainrule.strategies import make_strategy
from chainrule.testing.models import narrow_model
from chainrule.testing.runs import short_run
from chainrule.training.projecting import Projecting
from chainrule.training.states import Projection

pytestmark = pytest.mark.unit


def test_a_projection_is_in_every_phase_once() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

    model = Model()
    strategy = Projecting(make_strategy(Spec(name="full")), model, Projection(2, 3, seed=0))
    recipe = chainrule.Recipe.model_validate({"task": "text-classification", "model": "x"})
    (phase,) = strategy.phases(model, recipe.optimizer.model_copy(update={"learning_rate": 0.1}), 5)
    names = [name for group in phase.groups for name in group.names]
    assert sorted(names) == ["head.bias", "head.weight", "projection.weight"]
    strategy.finish(model)
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run("text-classification", tmp_path_factory.mktemp("teacher") / "x", training__steps=4)


CASES: dict[str, dict[str, Any]] = {
    "lora": {"strategy": "lora"},
    "gradual": {"strategy": "gradual"},
    "prompt": {"strategy": "prompt"},
    "head": {"strategy": "head"},
    "around": {"regularisers": {"fgm": {}, "l2-sp": {"strength": 0.01}}, "training.averaging": "ema"},
    "in pieces": {"training.micro_batch_tokens": 64, "training.precision": "bfloat16"},
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_with_the_rest_of_a_recipe(case: str, teacher: Run, tmp_path: Path) -> None:
    data, like = teacher.path.parent / "rows" / "rows.csv", teacher.path.parent / "model"
    settings = {"model": str(narrow_model(tmp_path / "narrow", like)), "training.steps": 12, "training.threads": 1}
    settings |= {"training.precision": "float32", "distillation.teachers": [str(teacher.path)]}
    settings |= {f"distillation.{name}": 1.0 for name in ("hidden", "attention", "relation", "sentences")}
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings | CASES[case])
    assert run.summary["steps"] == 12
    for path in run.artifact.path.glob("*.safetensors"):
        with safe_open(path, "pt") as kept:
            assert not [name for name in kept.keys() if "projection" in name]  # noqa: SIM118  (no mapping)
    names = [name for name, _ in load_predictor(run.artifact).forward.model.named_parameters()]
    assert not [name for name in names if "projection" in name]
