"""A language model as OpenVINO's graph: it reads and writes what the model does, and needs no Chainrule for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import chainrule
from chainrule.core.artifact import Artifact, Run
from chainrule.errors import GateError, ModelError
from chainrule.inference.predict import load_predictor
from chainrule.testing.models import tiny_byte_chat_model
from chainrule.testing.runs import short_run

pytest.importorskip("openvino")
pytestmark = pytest.mark.unit

ANY: Any = {"allow_slower": True, "loss": 100.0, "worst": 1000.0}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("chat")
    model = tiny_byte_chat_model(folder / "model")
    lora = {"name": "lora", "options": {"merge": False}}
    return short_run("text-generation", folder / "run", model=str(model), strategy=lora, training__precision="float32")


@pytest.fixture(scope="module")
def graph(chat: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "out"
    artifact, step = chainrule.export(chat, "openvino", folder)
    assert artifact.manifest.runtime == "openvino"
    assert step.parity.distance <= 1e-3 * step.parity.largest
    return folder


def test_logits_are_those_of_the_model(chat: Run, graph: Path) -> None:
    """Of rows with padding at the left, read at once and token by token, and with beams in another order."""
    model, other = (
        load_predictor(given, precision="float32").forward.model for given in (chat.artifact, Artifact.read(graph))
    )
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "position_ids": places}
    with torch.inference_mode():
        expected = model(input_ids=ids, **given).logits
        whole = other(input_ids=ids, **given)
        assert torch.allclose(whole.logits[mask.bool()], expected[mask.bool()], atol=1e-4)
        memory: Any = None
        found = []
        for place in range(5):
            step = other(
                input_ids=ids[:, place : place + 1],
                attention_mask=mask[:, : place + 1],
                position_ids=places[:, place : place + 1],
                past_key_values=memory,
            )
            memory = step.past_key_values
            found.append(step.logits[:, 0])
        assert torch.allclose(torch.stack(found, 1)[mask.bool()], expected[mask.bool()], atol=1e-4)
        memory.reorder_cache(torch.tensor([1, 0]))
        swapped = other(
            input_ids=torch.tensor([[20], [20]]),
            attention_mask=torch.cat([mask.flip(0), torch.ones(2, 1, dtype=torch.long)], 1),
            position_ids=places.flip(0)[:, -1:] + 1,
            past_key_values=memory,
        )
        more = torch.cat([ids.flip(0), torch.tensor([[20], [20]])], 1)
        seen = torch.cat([mask.flip(0), torch.ones(2, 1, dtype=torch.long)], 1)
        again = model(input_ids=more, attention_mask=seen, position_ids=(seen.cumsum(-1) - 1).clamp(min=0)).logits
        assert torch.allclose(swapped.logits[:, 0], again[:, -1], atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"beams": 3}, {"temperature": 0.8, "seed": 3}])
def test_it_writes_what_the_model_writes(chat: Run, graph: Path, more: dict[str, Any]) -> None:
    texts = ["film good", "it cold and warm", "room"]
    first, second = (chainrule.predict(model, text=texts, max_new_tokens=12, **more) for model in (chat, graph))
    assert first == second


def test_the_example_writes_without_chainrule_and_torch(chat: Run, graph: Path) -> None:
    program = (
        "import runpy, sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name.partition('.')[0] in ('torch', 'chainrule', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "sys.argv = ['example.py', 'film good']\n"
        f"runpy.run_path({str(graph / 'example.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = chainrule.predict(chat, text=["film good"], max_new_tokens=8)  # type: ignore[misc]
    assert done.stdout.strip().startswith(row["predicted_text"].strip()[:4])


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_weights_in_few_bits(to: str, chat: Run, tmp_path: Path) -> None:
    artifact, step = chainrule.compress(chat, tmp_path / "small", to=to, **ANY)
    assert artifact.manifest.runtime == "openvino"
    assert step.parity.metric == "loss"
    assert step.parity.before is not None
    assert step.parity.after == pytest.approx(step.parity.before, abs=0.05 if to == "int8" else 0.5)
    assert step.speed is not None
    assert (step.speed.written or 0) > 0
    weights = (artifact.path / "openvino_model.bin").stat().st_size
    assert weights < 0.5 * sum(p.numel() * 4 for p in load_predictor(chat.artifact).forward.model.parameters())
    rows = chainrule.predict(artifact, text=["film good"], max_new_tokens=5)
    assert isinstance(rows, list)
    assert set(rows[0]) >= {"predicted_text"}
    report = chainrule.evaluate(artifact, str(chat.path.parent / "rows" / "rows.jsonl"), split="test")
    assert report.metrics["loss"].value == pytest.approx(step.parity.after, abs=1e-3)


def test_a_loss_that_rises_is_told_as_such(chat: Run, tmp_path: Path) -> None:
    """It would have to be a hundredth better."""
    limits: Any = {"loss": -1.0, "allow_slower": True}
    with pytest.raises(GateError, match="compress --to int8 gave another model; it was not put in place") as told:
        chainrule.compress(chat, tmp_path / "small", to="int8", **limits)
    assert told.value.problems[0].expected.startswith("loss at most -0.01 higher than ")
    assert not (tmp_path / "small").exists()


def test_what_is_no_such_graph_is_refused(tmp_path: Path, graph: Path) -> None:
    reading = short_run("text-classification", tmp_path / "x")
    with pytest.raises(ModelError, match="This model cannot be compressed like this") as told:
        chainrule.compress(reading, tmp_path / "out", to="int4")
    assert told.value.problems[0].got == "one for text-classification"
    assert told.value.problems[0].todo == "Four bits are for models that write text; use --to int8."
    with pytest.raises(ModelError) as told:
        chainrule.compress(graph, tmp_path / "out", to="int8")
    assert told.value.problems[0].got == "one that was made for openvino"
    prompted = short_run("text-generation", tmp_path / "prompt", strategy="prompt")
    with pytest.raises(ModelError) as told:
        chainrule.export(prompted, "openvino", tmp_path / "out")
    assert told.value.problems[0].got == "a trained prompt before every row"
    preferring = short_run("preference", tmp_path / "preference", strategy="lora")
    with pytest.raises(ModelError) as told:
        chainrule.export(preferring, "openvino", tmp_path / "out")
    assert told.value.problems[0].got.startswith("one that has learned preferences")


def test_a_damaged_graph_is_told(graph: Path, tmp_path: Path) -> None:
    shutil.copytree(graph, tmp_path / "damaged")
    model = tmp_path / "damaged" / "openvino_model.xml"
    model.write_text(model.read_text().replace("beam_idx", "other_idx"))
    with pytest.raises(ModelError):
        chainrule.predict(tmp_path / "damaged", text="film")
