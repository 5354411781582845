"""The models of the catalog, as they come from the package index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chainrule.errors import AssetError
from chainrule.models.catalog import MODELS, list_models, model_folder
from chainrule.testing.catalog import fetched

pytestmark = pytest.mark.unit

LOAD_MINILM = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
batch = tokenizer(["a cat sat", "a kitten sat", "stock prices fell"], padding=True, return_tensors="pt")
with torch.no_grad():
    states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3, vectors @ vectors.T
print(sum(weight.numel() for weight in model.parameters()))
"""

LOAD_SMOLLM2 = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert model.dtype == torch.bfloat16
assert getattr(model.config, "quantization_config", None) is None
assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id == model.config.pad_token_id
assert tokenizer.model_max_length == 8192
assert tokenizer.tokenize("x   2") == ["x", "ĠĠĠ", "2"]  # single digits, split before anything else
question = [{"role": "user", "content": "What is the capital of France?"}]
batch = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**batch, max_new_tokens=20, do_sample=False)[0, batch["input_ids"].shape[1]:]
assert answer[-1] == tokenizer.eos_token_id
assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
print(sum(weight.numel() for weight in model.float().parameters()))
"""


def run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_minilm_is_a_normal_folder() -> None:
    folder = fetched(model_folder, "minilm")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".bin", ".pkl", ".pt")]
    assert int(run(LOAD_MINILM, folder)) == MODELS["minilm"].parameters


@pytest.mark.slow
def test_smollm2_becomes_a_normal_folder_that_answers() -> None:
    pytest.importorskip("gguf", reason="needs chainrule[gguf]")
    folder = fetched(model_folder, "smollm2")
    assert not list(folder.glob("*.gguf"))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert int(run(LOAD_SMOLLM2, folder)) == MODELS["smollm2"].parameters


def test_a_name_that_is_not_in_the_catalog() -> None:
    assert model_folder("bert-base-uncased") is None


def test_the_rows_of_show_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    rows = list_models()
    assert [row["name"] for row in rows] == ["minilm", "smollm2"]
    assert not any(row["cached"] for row in rows)
    assert list(tmp_path.iterdir()) == []  # looking downloads nothing
    json.dumps(rows)


def test_without_a_network_the_message_names_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    monkeypatch.setenv("CHAINRULE_OFFLINE", "1")
    with pytest.raises(AssetError, match="Cannot fetch 'minilm'"):
        model_folder("minilm")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_catalog_is_read_without_torch() -> None:
    program = "import sys, chainrule.models.catalog; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert run(program, Path()) == "[]"
