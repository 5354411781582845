"""Virtual tokens before every row: the same as PEFT's own forward, whatever the padding, and room for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import chainrule
from chainrule.core.recipe import Spec, Structure
from chainrule.errors import ModelError, RecipeError
from chainrule.inference.predict import load_predictor
from chainrule.models.adapters import without_adapters
from chainrule.models.load import load_classifier, load_language_model, load_tokenizer
from chainrule.strategies import make_strategy
from chainrule.tasks.language_model import packs, parts_of
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_chat_model, tiny_model

pytestmark = pytest.mark.unit
IDS = torch.arange(5, 12)[None]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_model(tmp_path_factory.mktemp("chat") / "llama")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"{place} {word}", "response": f"very {word}"} for place in ("film", "it") for word in WORDS]
    file = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


WORDS = ("good", "bad", "warm", "cold", "silly", "clever", "dull", "great", "lovely", "broken")


@pytest.fixture(scope="module")
def model(chat: Path) -> Any:
    plain = load_language_model(str(chat), load_tokenizer(str(chat)), Structure(), seed=0)
    return make_strategy(Spec(name="prompt", options={"tokens": 3})).prepare(plain, print).eval()


def test_hidden_states_give_the_logits_of_peft(model: Any) -> None:
    parts = parts_of(model)
    with torch.inference_mode():
        found = parts.logits(parts.hidden({"input_ids": IDS}))
        wanted = model(input_ids=IDS).logits[:, 3:]
        base = model.get_base_model()(input_ids=IDS).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, base, atol=1e-2)


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(left: bool, model: Any) -> None:
    padding = torch.zeros(1, 4, dtype=torch.long)
    parts = (padding, IDS) if left else (IDS, padding)
    mask = torch.cat([torch.ones_like(part) * int(part is IDS) for part in parts], 1)
    with torch.inference_mode():
        alone = parts_of(model).hidden({"input_ids": IDS})
        padded = parts_of(model).hidden({"input_ids": torch.cat(parts, 1), "attention_mask": mask})
    assert torch.allclose(padded[:, 4:] if left else padded[:, :7], alone, atol=1e-5)


def test_without_the_prompt_it_is_the_base_model(model: Any, chat: Path) -> None:
    with torch.inference_mode(), without_adapters(model) as base:
        found = parts_of(base).hidden({"input_ids": IDS})
        wanted = parts_of(load_language_model(str(chat), load_tokenizer(str(chat)), Structure(), seed=0).eval()).hidden(
            {"input_ids": IDS}
        )
    assert torch.equal(found, wanted)


def test_rows_are_not_packed_behind_one_prompt(model: Any) -> None:
    assert packs(model.get_base_model())
    assert not packs(model)


@pytest.fixture(scope="module")
def tuned(chat: Path, talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {"model": str(chat), "task": "text-generation", "strategy": "prompt", "strategy.options.tokens": 8}
    settings |= {"training.epochs": 12, "optimizer.learning_rate": 0.3, "training.precision": "float32"}
    settings |= {"training.threads": 1, "training.batch_size": 4}
    return chainrule.train(str(talks), out=tmp_path_factory.mktemp("tuned") / "run", settings=settings)


def test_a_language_model_learns_and_is_compared_with_its_base(tuned: Any, chat: Path, talks: Path) -> None:
    assert tuned.summary["trained_parameters"] == 8 * 32
    first = next(event for event in tuned.events() if event["event"] == "evaluation")
    assert tuned.summary["metrics"]["loss"] < first["metrics"]["loss"] - 1
    report = chainrule.evaluate(tuned, str(talks), split="validation")
    assert report.metrics["loss"].value == pytest.approx(tuned.summary["metrics"]["loss"], abs=1e-5)
    assert first["metrics"]["loss"] == pytest.approx(report.baselines["untuned"]["loss"].value, abs=1e-5)


def test_replies_do_not_depend_on_their_neighbours(tuned: Any) -> None:
    texts = ["film good", "it", "a very very very long book room phone film bad"]
    together = chainrule.predict(tuned, text=texts, max_new_tokens=6)
    alone = [chainrule.predict(tuned, text=text, max_new_tokens=6) for text in texts]
    assert together == [row for rows in alone if isinstance(rows, list) for row in rows]
    assert len({row["predicted_text"] for row in together if isinstance(together, list)}) > 1


def test_there_is_room_for_the_prompt(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{**row, "text": f"{row['text']} {'a ' * 70}"} for row in sentences(60)]
    data = write_csv(tmp_path / "data.csv", rows)
    settings = {"model": str(tiny_bert), "strategy": "prompt", "training.steps": 2, "training.threads": 1}
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings)
    assert run.artifact.manifest.max_length == 44
    assert load_predictor(run.artifact).encode({"text": [rows[0]["text"]]}).lengths.tolist() == [44]
    chainrule.predict(run, text=rows[0]["text"])
    with pytest.raises(ModelError) as caught:
        chainrule.train(str(data), out=tmp_path / "other", settings={**settings, "model.max_length": 64})
    assert caught.value.problems[0].expected == "max_length of at most 44"


def test_a_classifier_that_looks_for_the_last_token_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "llama", "llama")
    tokenizer = load_tokenizer(str(folder))
    model = load_classifier(str(folder), tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)
    with pytest.raises(RecipeError) as caught:
        make_strategy(Spec(name="prompt")).prepare(model, print)
    assert str(caught.value.problems[0]) == (
        "field 'strategy.name': expected a classifier that reads the first token of a text, such as BERT, got a llama, "
        "which reads the last one and finds it by token ids alone. Use --strategy lora, or another model."
    )
