"""A model of vectors: loaded, saved, and the same in sentence-transformers and in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from chainrule.core.recipe import Structure
from chainrule.errors import ModelError, RecipeError
from chainrule.models.accelerate import accelerate, restore
from chainrule.models.embedder import MODULES, POOLING_FOLDER
from chainrule.models.load import load_classifier, load_saved, load_tokenizer
from chainrule.models.pooling import POOLINGS
from chainrule.models.save import save_model
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit
TEXTS = ["the film was good", "a very bad book and a cold room, really", "it"]


def loaded(folder: Path, pooling: Any = None, **more: Any) -> Any:
    structure = Structure(pooling=pooling, **more)
    return load_classifier(str(folder), load_tokenizer(str(folder)), (), "", structure, seed=0, head="encoder").eval()


def vectors(model: Any, folder: Path) -> np.ndarray:
    batch = load_tokenizer(str(folder))(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found: np.ndarray = model(**batch).vectors.numpy()
    return found


@pytest.mark.parametrize(
    ("family", "pooling", "chosen"),
    [
        ("bert", None, "mean"),
        ("bert", "cls", "cls"),
        ("roberta", "max", "max"),
        ("distilbert", "last", "last"),
        ("llama", None, "last"),
        ("qwen2", "mean", "mean"),
    ],
)
def test_saved_models_give_the_same_vectors_elsewhere(
    family: str, pooling: str | None, chosen: str, tmp_path: Path
) -> None:
    base, out = tiny_model(tmp_path / "base", family), tmp_path / "out"
    model, tokenizer = loaded(base, pooling), load_tokenizer(str(base))
    accelerate(model, torch.device("cpu"))
    found = vectors(model, base)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    restore(model)
    out.mkdir()
    assert save_model(out, model, tokenizer, max_length=32, base="x") == ("sentence-transformers", "transformers")
    np.testing.assert_allclose(vectors(load_saved(out, "encoder", "x").eval(), out), found, atol=2e-6)
    np.testing.assert_allclose(vectors(loaded(out), out), found, atol=2e-6)  # it remembers its pooling
    batch = AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(out)(**batch).last_hidden_state
    plain = torch.nn.functional.normalize(POOLINGS[chosen](states, batch["attention_mask"]), dim=-1)
    np.testing.assert_allclose(plain, found, atol=2e-6)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(out), device="cpu")
    assert theirs.max_seq_length == 32
    np.testing.assert_allclose(theirs.encode(TEXTS), found, atol=2e-6)


def test_the_pooling_of_a_model_of_sentence_transformers_is_kept(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    (base / POOLING_FOLDER).mkdir()
    for settings in ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}):
        (base / POOLING_FOLDER / "config.json").write_text(json.dumps(settings))
        np.testing.assert_allclose(vectors(loaded(base), base), vectors(loaded(base, "cls"), base), rtol=1e-6)
    (base / POOLING_FOLDER / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    np.testing.assert_allclose(vectors(loaded(base), base), vectors(loaded(base, "mean"), base), rtol=1e-6)


def test_what_a_model_of_vectors_cannot_have(tmp_path: Path) -> None:
    bert, llama = tiny_model(tmp_path / "bert"), tiny_model(tmp_path / "llama", "llama")
    with pytest.raises(RecipeError, match="expected cls, last, mean, max, which sentence-transformers has, too"):
        loaded(bert, "attention")
    with pytest.raises(RecipeError, match="expected nothing above the pooling, got mlp"):
        loaded(bert, head="mlp")
    with pytest.raises(RecipeError, match="the first token of a decoder sees no other"):
        loaded(llama, "cls")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"chainrule_pooling": "sideways"}))
    with pytest.raises(ModelError, match="'sideways'"):
        loaded(bert)


def test_what_sentence_transformers_reads(tmp_path: Path) -> None:
    base, out = tiny_model(tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    save_model(out, loaded(base, "max"), load_tokenizer(str(base)), max_length=16, base="x")
    kinds = [step["type"].rpartition(".")[2] for step in json.loads((out / MODULES).read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    modes = json.loads((out / POOLING_FOLDER / "config.json").read_text())
    assert [name for name, on in modes.items() if on is True] == ["pooling_mode_max_tokens"]
    assert modes["word_embedding_dimension"] == 32
