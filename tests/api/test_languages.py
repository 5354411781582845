"""Translation models: Marian, and mBART, which marks texts with their languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import RecipeError
from chainrule.testing.data import reversals, write_json_lines
from chainrule.testing.models import tiny_chat_model, tiny_encoder_decoder, tiny_multilingual_model

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {
    "training.epochs": 4,
    "training.batch_size": 32,
    "training.precision": "float32",
    "training.threads": 1,
    "optimizer.learning_rate": 3e-3,
    "task.options.max_new_tokens": 8,
}
LANGUAGES = {"task.options.source_language": "en_XX", "task.options.target_language": "de_DE"}
TEXTS = ["good bad", "warm cold silly", "lovely dull"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json_lines(tmp_path_factory.mktemp("rows") / "reversed.jsonl", reversals(400, words=2))


def train(rows: Path, model: Path, out: Path, **more: Any) -> Run:
    return chainrule.train(rows, out=out, task="seq2seq", model=str(model), settings={**SETTINGS, **more})


def written(run: Run) -> list[str]:
    rows: Any = chainrule.predict(run, text=TEXTS, max_new_tokens=8)
    return [row["predicted_text"] for row in rows]


def written_without(run: Run) -> list[str]:
    """What plain transformers writes, by the settings that are saved."""
    tokenizer = AutoTokenizer.from_pretrained(run.artifact.path)
    model = AutoModelForSeq2SeqLM.from_pretrained(run.artifact.path)
    found = []
    for text in TEXTS:
        with torch.inference_mode():
            ids = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, forced_eos_token_id=None)
        found.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    return found


def test_marian_learns_and_loads_in_plain_transformers(rows: Path, tmp_path: Path) -> None:
    run = train(rows, tiny_encoder_decoder(tmp_path / "model", "marian"), tmp_path / "run")
    assert run.summary["metrics"]["loss"] < 3.5, "the untuned model's is above 5"
    again = chainrule.evaluate(run, str(rows), split="validation")
    assert again.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], abs=1e-5)
    assert written(run) == written_without(run)


@pytest.mark.parametrize("first", [False, True], ids=["mbart", "mbart50"])
def test_languages_are_marked_in_training_and_in_plain_transformers(first: bool, rows: Path, tmp_path: Path) -> None:
    model = tiny_multilingual_model(tmp_path / "model", first=first)
    run = train(rows, model, tmp_path / "run", **LANGUAGES)
    assert run.summary["metrics"]["loss"] < 3.5, "the untuned model's is above 5"
    tokenizer = AutoTokenizer.from_pretrained(run.artifact.path)
    german = tokenizer.convert_tokens_to_ids("de_DE")
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", "de_DE")
    settings = json.loads((run.artifact.path / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["forced_bos_token_id" if first else "decoder_start_token_id"] == german
    assert written(run) == written_without(run)
    plain = AutoModelForSeq2SeqLM.from_pretrained(run.artifact.path)
    with torch.inference_mode():
        ids = plain.generate(**tokenizer("good bad", return_tensors="pt"), max_new_tokens=8)[0].tolist()
    assert ids[1 if first else 0] == german
    again = chainrule.evaluate(run, str(rows), split="validation")
    assert again.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], abs=1e-5)


def test_a_language_that_is_not_said_or_not_known_is_refused(rows: Path, tmp_path: Path) -> None:
    model = tiny_multilingual_model(tmp_path / "model")
    with pytest.raises(RecipeError, match="writes in several languages") as caught:
        train(rows, model, tmp_path / "a")
    assert "task.options.target_language" in caught.value.problems[0].todo
    with pytest.raises(RecipeError, match="does not know this language") as caught:
        train(rows, model, tmp_path / "b", **{"task.options.target_language": "xx_XX"})
    assert "de_DE" in caught.value.problems[0].expected
    with pytest.raises(RecipeError, match="marks no languages"):
        train(rows, tiny_encoder_decoder(tmp_path / "bart", "bart"), tmp_path / "c", **LANGUAGES)
    with pytest.raises(RecipeError, match="has no marks of languages"):
        train(rows, tiny_chat_model(tmp_path / "llama"), tmp_path / "d", **LANGUAGES)
