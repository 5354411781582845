"""Strategies that train a part of the pretrained weights: which part, from when on, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.core.recipe import Optimizer, Spec, Structure
from chainrule.errors import RecipeError
from chainrule.models.inspect import anatomy
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import make_strategy
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit


def load(folder: Path) -> Any:
    tokenizer = load_tokenizer(str(folder))
    return load_classifier(str(folder), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)


@pytest.fixture(scope="module")
def model(tiny_bert: Path) -> Any:
    return load(tiny_bert)


def phases(name: str, model: Any, steps: int = 100, **options: Any) -> list[Any]:
    strategy = make_strategy(Spec(name=name, options=options))
    return strategy.phases(model, Optimizer(learning_rate=1e-3), steps)


def trained(name: str, model: Any, **options: Any) -> set[str]:
    (phase,) = phases(name, model, **options)
    names: set[str] = phase.names
    return names


def test_partial_takes_layers_from_the_top_and_from_the_bottom(model: Any) -> None:
    parts = anatomy(model)
    bottom, top = map(set, parts.layers)
    head, embeddings = set(parts.head), set(parts.embeddings)
    assert trained("partial", model) == bottom | top | head
    assert trained("partial", model, top=1) == top | head
    assert trained("partial", model, top=0, first=1) == bottom | head
    assert trained("partial", model, top=1, first=1) == bottom | top | head
    assert trained("partial", model, top=1, embeddings=True) == embeddings | top | head
    assert trained("partial", model, top=0) == head


def test_partial_takes_parameters_by_pattern(model: Any) -> None:
    head, names = set(anatomy(model).head), {name for name, _ in model.named_parameters()}
    norms = {name for name in names if ".LayerNorm." in name}
    assert trained("partial", model, top=0, parameters=["*.LayerNorm.*"]) == norms | head
    second = {name for name in names if name.startswith("bert.encoder.layer.1.")}
    assert trained("partial", model, top=0, parameters=["encoder.layer.1.*"]) == second | head
    assert trained("partial", model, top=0, parameters=["bert.encoder.layer.[1].*"]) == second | head


def test_partial_tells_everything_that_is_wrong_at_once(model: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        phases("partial", model, top=3, first=4, parameters=["encoder.layer.7.*", "classifier.*", "lstm.*"])
    assert [str(problem).partition(" expected ")[0] for problem in caught.value.problems] == [
        "field 'strategy.options.top':",
        "field 'strategy.options.first':",
        "field 'strategy.options.parameters':",
        "field 'strategy.options.parameters':",
    ]
    assert str(caught.value.problems[0]) == (
        "field 'strategy.options.top': expected at most 2, the layers this model has, got 3. "
        "Lower it, or use --strategy full."
    )
    last = caught.value.problems[-1]
    assert last.expected.startswith("a pattern of the model's parameters: bert.embeddings.word_embeddings.weight, ")
    assert "bert.encoder.layer.{0-1}.attention.self.query.weight" in last.expected
    assert (last.got, last.todo) == ("'lstm.*', which matches none", "Correct it; * stands for anything.")


def test_bitfit_trains_biases_and_the_head(model: Any) -> None:
    found = trained("bitfit", model)
    assert found == {name for name, _ in model.named_parameters() if name.endswith(".bias")} | set(anatomy(model).head)
    assert "bert.encoder.layer.0.attention.self.key.bias" in found
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in found


def test_bitfit_without_biases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        phases("bitfit", load(tiny_model(tmp_path / "llama", "llama")))
    assert str(caught.value.problems[0]).startswith(
        "field 'strategy.name': expected a model with bias terms below its head, got a llama without any: "
        "model.embed_tokens.weight, model.layers.{0-1}.self_attn.q_proj.weight, "
    )
    assert caught.value.problems[0].todo.startswith("Use --strategy lora")


def test_gradual_unfreezes_from_the_head_down(model: Any) -> None:
    parts = anatomy(model)
    bottom, top = map(set, parts.layers)
    head, embeddings = set(parts.head), set(parts.embeddings)
    found = phases("gradual", model, steps=120)
    assert [(phase.start_step, phase.names) for phase in found] == [
        (0, head),
        (20, head | top),
        (40, head | top | bottom),
        (60, head | top | bottom | embeddings),
    ]
    found = phases("gradual", model, steps=120, layers=2, until=0.25)
    assert [phase.start_step for phase in found] == [0, 15, 30]
    assert found[1].names == head | top | bottom


def test_gradual_in_one_step_trains_everything_it_comes_to(model: Any) -> None:
    (only,) = phases("gradual", model, steps=1)
    assert only.names == {name for name, _ in model.named_parameters()}


def test_gradual_with_more_layers_at_a_time_than_there_are(model: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        phases("gradual", model, layers=3)
    assert str(caught.value.problems[0]).startswith("field 'strategy.options.layers': expected at most 2, the layers")


def test_weights_of_an_early_phase_come_back_whole(tiny_bert: Path, tmp_path: Path) -> None:
    """The best weights are those before the last layers were unfrozen and spoilt; the latter must go back, too."""
    data = write_csv(tmp_path / "data.csv", sentences(100))
    settings = {"model": str(tiny_bert), "strategy": "gradual", "training.steps": 12, "training.precision": "float32"}
    settings |= {"optimizer.learning_rate": 0.3, "schedule.name": "constant", "schedule.warmup": 0.0}
    settings |= {"training.evaluate_every_steps": 1, "training.threads": 1, "data.validation_fraction": 0.4}
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings)
    assert run.summary["best_step"] < 6  # where the embeddings begin to be trained
    report = chainrule.evaluate(run, str(data), split="validation")
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], rel=1e-4)
