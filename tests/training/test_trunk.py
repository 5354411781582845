"""Frozen layers computed once: the same numbers as running them every time, kept under what they follow from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import Structure
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded, encode
from chainrule.inference.predict import Forward
from chainrule.models.accelerate import accelerate, restore
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.models.trunk import frozen_depth
from chainrule.system.progress import Quiet
from chainrule.testing.models import tiny_model
from chainrule.training import trunk
from chainrule.training.trunk import with_states

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
TEXTS = ["good film", "a bad and boring story", "the hotel was not nice at all", "good"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHAINRULE_NATIVE", "0")  # a new cache would have to compile the kernels
    return tmp_path / "cache" / "trunks"


def made(folder: Path, family: str, **changes: Any) -> tuple[Any, Encoded, Forward]:
    structure, name = Structure(**changes), str(tiny_model(folder / family, family))
    tokenizer = load_tokenizer(name, structure.add_tokens)
    model = load_classifier(name, tokenizer, ["a", "b"], "single_label_classification", structure, seed=0).eval()
    rows = encode(tokenizer, {"text": TEXTS}, np.array([0, 1, 1, 0]), 32)
    return model, rows, Forward(model, 0, False, CPU, "float32")


def logits(model: Any, rows: Encoded) -> torch.Tensor:
    batch = collate(rows, np.array([2, 0, 3, 1]), pad_id=0, left=False, device=CPU)
    with torch.no_grad():
        result: torch.Tensor = model(**batch.inputs).logits
    return result


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("depth", [1, 2])
def test_above_the_trunk_the_logits_are_the_same(tmp_path: Path, family: str, depth: int, own_cache: Path) -> None:
    model, rows, forward = made(tmp_path, family)
    before = logits(model, rows)
    accelerate(model, CPU)
    found = with_states(forward, depth, {"train": rows}, Quiet())
    assert found is not None
    assert found.seconds > 0
    assert "inputs_embeds" in collate(found.splits["train"], np.array([0]), pad_id=0, left=False, device=CPU).inputs
    assert torch.allclose(logits(model, found.splits["train"]), before, atol=1e-5)
    states = found.splits["train"].states
    assert states is not None
    assert len(states.values) == (len(TEXTS) if depth == 2 else len(rows.ids))
    restore(model)
    assert torch.equal(logits(model, rows), before)
    assert len(list(own_cache.glob("*.bin"))) == 1


def test_what_is_there_is_used_and_what_changed_is_made_anew(tmp_path: Path, own_cache: Path) -> None:
    model, rows, forward = made(tmp_path, "bert")
    for expected in (1, 1):
        found = with_states(forward, 1, {"train": rows}, Quiet())
        restore(model)
        assert len(list(own_cache.glob("*.bin"))) == expected
    assert found is not None
    assert found.seconds == 0.0
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.mul_(2)  # above: nothing to do with it
    assert with_states(forward, 1, {"train": rows}, Quiet()) is not None
    restore(model)
    assert len(list(own_cache.glob("*.bin"))) == 1
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(2)
    assert with_states(forward, 1, {"train": rows}, Quiet()) is not None
    restore(model)
    assert len(list(own_cache.glob("*.bin"))) == 2


def test_states_of_a_model_with_another_structure_are_never_taken(tmp_path: Path, own_cache: Path) -> None:
    """All but the last change what comes out of the frozen layers, or which of it is kept."""
    variants: list[dict[str, Any]] = [
        {},
        {"pooling": "cls", "head": "linear"},
        {"pooling": "mean"},
        {"reinitialise_top": 1},
        {"drop_layers": [0]},
        {"drop_layers": [1]},
        {"insert_blocks": [0]},
        {"activation": "relu"},
        {"add_tokens": ["filmgood"]},
        {"dropout": None},
    ]
    for number, changes in enumerate(variants, start=1):
        model, rows, forward = made(tmp_path, "bert", **changes)
        before = logits(model, rows)
        found = with_states(forward, model.config.num_hidden_layers, {"train": rows}, Quiet())
        assert found is not None
        assert torch.allclose(logits(model, found.splits["train"]), before, atol=1e-5)
        assert len(list(own_cache.glob("*.bin"))) == min(number, len(variants) - 1)


def test_the_cache_stays_within_its_limit(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, forward = made(tmp_path, "bert")
    with_states(forward, 1, {"train": rows}, Quiet())
    restore(model)
    size = next(own_cache.glob("*.bin")).stat().st_size
    monkeypatch.setattr(trunk, "LIMIT_BYTES", size + 100)
    with_states(forward, 2, {"train": rows}, Quiet())
    restore(model)
    assert [path.stat().st_size for path in own_cache.glob("*.bin")] == [len(TEXTS) * 32 * 4]
    monkeypatch.setattr(trunk, "LIMIT_BYTES", 10)
    assert with_states(forward, 1, {"train": rows}, Quiet()) is None
    assert "forward" not in model.bert.embeddings.__dict__


def test_the_depth_is_what_no_phase_trains(tmp_path: Path) -> None:
    model = made(tmp_path, "bert")[0]
    names = [name for name, _ in model.named_parameters()]
    assert frozen_depth(model, names) == 0
    assert frozen_depth(model, [name for name in names if "layer.1." in name or "classifier" in name]) == 1
    assert frozen_depth(model, [name for name in names if "classifier" in name or "pooler" in name]) == 2
    assert frozen_depth(made(tmp_path, "llama")[0], ["score.weight"]) == 0


@pytest.mark.parametrize("strategy", ["partial", "head"])
def test_a_run_with_the_cache_learns_what_one_without_learns(
    tiny_bert: Path, reviews: Path, tmp_path: Path, strategy: str
) -> None:
    def run(name: str, cache: bool) -> Run:
        settings = {
            "model": str(tiny_bert),
            "training.precision": "float32",
            "training.threads": 1,
            "training.trunk_cache": cache,
            "training.epochs": 2,
            "structure.dropout": 0.0,  # the masks above would be drawn after other numbers of draws
            "structure.attention_dropout": 0.0,
            "strategy": {"name": strategy, "options": {"top": 1} if strategy == "partial" else {}},
        }
        return chainrule.train(str(reviews), out=tmp_path / name, settings=settings)

    with_cache, without = run("with", True), run("without", False)
    losses = [[event["loss"] for event in made.events() if event["event"] == "step"] for made in (with_cache, without)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert with_cache.summary["metrics"] == pytest.approx(without.summary["metrics"], abs=1e-3)
