"""The table of groups: who trains what, from when on, at which rate, and what is wrong with a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

import chainrule
from chainrule.core.recipe import Optimizer, Spec, Structure, read_recipe
from chainrule.errors import RecipeError
from chainrule.models.adapters import has_adapters, owner
from chainrule.models.inspect import anatomy
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import make_strategy
from chainrule.strategies.hybrid import Hybrid, _thirds
from chainrule.testing.data import sentences, write_csv

pytestmark = pytest.mark.unit
RECIPE = Optimizer(learning_rate=1e-3, weight_decay=0.01)


def load(folder: Path) -> Any:
    tokenizer = load_tokenizer(str(folder))
    return load_classifier(str(folder), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)


def prepared(folder: Path, *groups: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    strategy = make_strategy(Spec(name="hybrid", options={"groups": list(groups) or None, **options}))
    return strategy, strategy.prepare(load(folder), print)


def problems(folder: Path, *groups: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        prepared(folder, *groups)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("layers", "table"),
    [
        (1, ["embeddings frozen", "top:1 full"]),
        (2, ["embeddings frozen", "0-0 lora", "top:1 full"]),
        (3, ["embeddings frozen", "first:1 frozen", "1-1 lora", "top:1 full"]),
        (6, ["embeddings frozen", "first:2 frozen", "2-3 lora", "top:2 full"]),
        (32, ["embeddings frozen", "first:10 frozen", "10-21 lora", "top:10 full"]),
    ],
)
def test_without_a_table_there_are_thirds(layers: int, table: list[str]) -> None:
    assert [f"{group.layers} {group.method}" for group in _thirds(layers)] == table


def test_every_group_is_trained_in_its_own_way(tiny_bert: Path) -> None:
    strategy, model = prepared(
        tiny_bert,
        {"layers": "0", "method": "lora", "start": 0.5},
        {"layers": "top:1", "method": "full", "learning_rate": 2e-3, "weight_decay": 0.2},
        {"layers": "encoder.layer.1.attention.*", "method": "frozen"},
        rank=2,
    )
    first, second = strategy.phases(model, RECIPE, 40)
    assert (first.start_step, second.start_step) == (0, 20)
    parts = anatomy(model)
    attention = {name for name in parts.layers[1] if ".attention." in name}
    assert first.names == {*parts.head, *parts.layers[1]} - attention
    adapters = {name for name in parts.layers[0] if ".lora_" in name}
    assert second.names == first.names | adapters
    assert {owner(name) for name in adapters} == {
        f"bert.encoder.layer.0.{layer}.weight"
        for layer in (
            *(f"attention.self.{part}" for part in ("query", "key", "value")),
            *("attention.output.dense", "intermediate.dense", "output.dense"),
        )
    }
    rates = {name: (group.learning_rate, group.weight_decay) for group in second.groups for name in group.names}
    assert rates["base_model.model.classifier.weight"] == (1e-3, 0.01)
    assert rates["base_model.model.bert.encoder.layer.1.output.dense.weight"] == (2e-3, 0.2)
    assert rates["base_model.model.bert.encoder.layer.1.output.dense.bias"] == (2e-3, 0.0)
    assert {rates[name] for name in adapters} == {(4e-3, 0.01)}
    assert all(value.shape[0] == 2 for name, value in model.named_parameters() if ".lora_A." in name)


def test_a_table_without_adapters_needs_no_peft(tiny_bert: Path) -> None:
    strategy, model = prepared(tiny_bert, {"layers": "first:1", "method": "full"})
    assert not has_adapters(model)
    (phase,) = strategy.phases(model, RECIPE, 40)
    assert phase.names == {*anatomy(model).layers[0], *anatomy(model).head}


def test_a_head_may_begin_late_or_stay_frozen(tiny_bert: Path) -> None:
    strategy, model = prepared(
        tiny_bert, {"layers": "0-1", "method": "full"}, {"layers": "head", "method": "full", "start": 0.25}
    )
    first, second = strategy.phases(model, RECIPE, 40)
    assert second.names - first.names == set(anatomy(model).head)
    strategy, model = prepared(tiny_bert, {"layers": "0-1", "method": "full"}, {"layers": "head", "method": "frozen"})
    (phase,) = strategy.phases(model, RECIPE, 40)
    assert not phase.names & set(anatomy(model).head)


def test_everything_that_is_wrong_is_told_at_once(tiny_bert: Path) -> None:
    told = problems(
        tiny_bert,
        {"layers": "0-5", "method": "full"},
        {"layers": "top:3", "method": "lora"},
        {"layers": "decoder.*", "method": "full"},
        {"layers": "*.LayerNorm.*", "method": "lora"},
        {"layers": "0", "method": "full"},
        {"layers": "first:1", "method": "frozen", "learning_rate": 1e-3},
        {"layers": "head", "method": "full"},
    )
    assert [line.partition(": expected ")[0] for line in told] == [
        f"field 'strategy.options.groups.{number}'" for number in range(6)
    ]
    assert told[0].endswith("expected layers from 0 to 1, which this model has, got '0-5'. Correct this group.")
    assert told[1].endswith("expected layers from 0 to 1, which this model has, got 'top:3'. Correct this group.")
    assert "or a pattern of bert.embeddings.word_embeddings.weight, " in told[2]
    assert told[2].endswith("got 'decoder.*'. Correct this group.")
    assert (
        "expected linear layers below the head for adapters: query, key, value, dense, got '*.LayerNorm.*'" in told[3]
    )
    assert "expected parameters that no later group names, got '0', all of which later groups name." in told[4]
    assert "expected a frozen group without learning_rate, weight_decay and start, got 'first:1'" in told[5]


def test_something_is_trained_from_the_first_step(tiny_bert: Path) -> None:
    late = {"layers": "0-1", "method": "full", "start": 0.5}
    assert problems(tiny_bert, late, {"layers": "head", "method": "frozen"}) == [
        "field 'strategy.options.groups': expected a group that is trained from the first step, got the first at 0.5 "
        "of the steps. Let one start at 0."
    ]
    frozen = {"layers": "0-1", "method": "frozen"}
    (told,) = problems(tiny_bert, frozen, {"layers": "head", "method": "frozen"})
    assert "got none. Let one start at 0." in told


def test_values_out_of_range_are_told_with_the_table(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        prepared(tiny_bert, {"layers": "0", "method": "LoRA", "start": 1.0}, {"method": "full"})
    fields = [problem.where.field for problem in caught.value.problems]
    assert fields == [f"strategy.options.groups.{name}" for name in ("0.method", "0.start", "1.layers")]


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_the_documented_table_is_one(folder: str, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / folder / "strategies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    file = tmp_path / "recipe.yaml"
    file.write_text(f"task: text-classification\nmodel: minilm\n{block}", encoding="utf-8")
    strategy = make_strategy(read_recipe(file).strategy)
    assert isinstance(strategy, Hybrid)
    config = BertConfig(num_hidden_layers=6, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    model = strategy.prepare(BertForSequenceClassification(config), print)
    assert [phase.start_step for phase in strategy.phases(model, RECIPE, 100)] == [0, 20]
    assert strategy.options.groups is not None
    assert [group.learning_rate for group in strategy.options.groups] == [None, None, None, 4e-4, None, None]


def test_a_number_is_a_layer(tiny_bert: Path) -> None:
    strategy, _ = prepared(tiny_bert, {"layers": 1, "method": "full"})
    assert strategy.options.groups[-1].layers == "1"


def test_a_run_leaves_a_plain_model_and_the_whole_table(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", sentences(120))
    settings = {"model": str(tiny_bert), "strategy": "hybrid", "training.steps": 12, "optimizer.learning_rate": 1e-2}
    settings |= {"training.precision": "float32", "training.threads": 1}
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings)
    assert run.artifact.manifest.loads_in == ("transformers",)
    before, after = load(tiny_bert).state_dict(), load_file(run.artifact.path / "model.safetensors")
    assert before.keys() == after.keys()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert {name for name in same if "embeddings" in name} == {name for name in after if "embeddings" in name}
    assert not any(name.startswith(("bert.encoder.layer.1.", "classifier")) for name in same)
    dense = {name for name in after if name.startswith("bert.encoder.layer.0.") and after[name].ndim == 2}
    assert {name for name in after if name.startswith("bert.encoder.layer.0.")} - same == dense
    written = read_recipe(run.path / "resolved.yaml").strategy
    assert [(group["layers"], group["method"]) for group in written.options["groups"]] == [
        ("head", "full"),
        ("embeddings", "frozen"),
        ("0-0", "lora"),
        ("top:1", "full"),
    ]
    again = make_strategy(written)
    assert isinstance(again, Hybrid)
    again.prepare(load(tiny_bert), print)
    assert again.options.model_dump(mode="json") == written.options


def test_frozen_layers_below_adapters_are_computed_once(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHAINRULE_NATIVE", "0")  # a new cache would have to compile the kernels
    data = write_csv(tmp_path / "data.csv", sentences(120))
    groups = [{"layers": "0", "method": "frozen"}, {"layers": "1", "method": "lora"}]
    settings = {"model": str(tiny_bert), "strategy.name": "hybrid", "strategy.options.groups": groups, "seed": 1}
    settings |= {"training.epochs": 3, "optimizer.learning_rate": 1e-2, "training.precision": "float32"}
    losses = []
    for name, cached in (("with", True), ("without", False)):
        run = chainrule.train(
            str(data), out=tmp_path / name, settings={**settings, "training.trunk_cache": cached, "training.threads": 1}
        )
        losses.append([event["loss"] for event in run.events() if event["event"] == "step"])
        assert len(list((tmp_path / "cache" / "trunks").glob("*.bin"))) == 2
    np.testing.assert_allclose(losses[0], losses[1], atol=2e-4)
