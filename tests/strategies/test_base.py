"""Parameter groups: what is decayed, and what trains at which learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainrule.core.recipe import Optimizer, Spec, Structure
from chainrule.models.inspect import depths_below_head
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import make_strategy

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tiny_bert: Path) -> Any:
    tokenizer = load_tokenizer(str(tiny_bert))
    return load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)


@pytest.mark.parametrize("name", ["full", "partial", "lora"])
def test_each_layer_below_the_head_learns_at_a_lower_rate(name: str, model: Any) -> None:
    strategy = make_strategy(Spec(name=name))
    model = strategy.prepare(model, print)
    optimizer = Optimizer(learning_rate=1e-3, layer_decay=0.5, weight_decay=0.1)
    (phase,) = strategy.phases(model, optimizer, 10)
    depths = depths_below_head(model)
    shapes = {key: value.ndim for key, value in model.named_parameters()}
    for group in phase.groups:
        for key in group.names:
            assert group.learning_rate == pytest.approx(1e-3 * 0.5 ** depths[key]), key
            assert group.weight_decay == (0.1 if shapes[key] >= 2 else 0.0), key
    assert len({group.learning_rate for group in phase.groups}) == {"full": 4, "partial": 3, "lora": 3}[name]


def test_without_layer_decay_there_are_two_groups(model: Any) -> None:
    (phase,) = make_strategy(Spec(name="full")).phases(model, Optimizer(learning_rate=1e-3), 10)
    assert [(group.learning_rate, group.weight_decay) for group in phase.groups] == [(1e-3, 0.01), (1e-3, 0.0)]
