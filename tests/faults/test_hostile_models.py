"""Model folders, adapters, artifacts and checkpoints that were made to do harm: refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch import nn

import chainrule
from chainrule.core.artifact import MANIFEST, ROWS, Artifact, Run
from chainrule.core.recipe import Structure
from chainrule.errors import ChainruleError, ModelError
from chainrule.evaluation.artifact import recorded_rows
from chainrule.inference.predict import load_predictor
from chainrule.kernels.adamw import NativeAdamW
from chainrule.models.load import load_classifier, load_language_model, load_tokenizer
from chainrule.testing.models import tiny_chat_model, tiny_model
from chainrule.training.checkpoint import Found, Standing
from chainrule.training.loop import Progress

pytestmark = pytest.mark.unit
BILLION = 10**9


@pytest.fixture
def folder(tmp_path: Path, tiny_bert: Path) -> Path:
    """A good model folder, to be made a bad one."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is there once foreign code has run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code that came with a model was run"


class Pickled:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def opened(folder: Path) -> Any:
    tokenizer = load_tokenizer(str(folder))
    kind = "single_label_classification"
    return load_classifier(str(folder), tokenizer, ["a", "b"], kind, Structure(), seed=0)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ChainruleError) as caught:
        call()
    assert caught.value.exit_code == 2
    return "\n".join(str(problem) for problem in caught.value.problems)


def change(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values), encoding="utf-8")


def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were about to be loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loading)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "vocab.txt"])
def test_links_that_leave_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "secret"
    (folder / name).touch()
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    told = refused(lambda: opened(folder))
    assert f"{folder}/{name}, field 'model.name': expected files inside the folder, got a link to {outside}." in told


def test_links_inside_the_folder_and_to_the_folder_are_fine(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "real.safetensors")
    (folder / "model.safetensors").symlink_to("real.safetensors")
    (tmp_path / "link").symlink_to(folder)
    assert opened(tmp_path / "link").config.num_labels == 2


@pytest.fixture
def hub_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model in a hub's cache, as huggingface_hub lays it out; returns the snapshot's folder."""
    home = tmp_path / "hub" / "models--some--model"
    snapshot = home / "snapshots" / ("0" * 40)
    for part in (snapshot, home / "blobs", home / "refs"):
        part.mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40, encoding="ascii")
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / f"{number:040}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.utils.hub, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return snapshot


def test_a_model_in_the_cache_of_the_hub(hub_model: Path) -> None:
    assert opened(hub_model).config.num_labels == 2
    assert opened(Path("some/model")).config.num_labels == 2


def test_a_model_of_the_hub_is_checked_like_a_folder(hub_model: Path, tmp_path: Path) -> None:
    config = hub_model / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.unlink()
    config.write_text(json.dumps(values | {"num_hidden_layers": BILLION}), encoding="utf-8")
    assert "some/model/config.json, field 'model.name': expected num_hidden_layers of at most 4,096" in refused(
        lambda: opened(Path("some/model"))
    )
    config.write_text(json.dumps(values), encoding="utf-8")
    (hub_model / "model.safetensors").unlink()
    (hub_model / "pytorch_model.bin").touch()
    assert "pytorch_model.bin: pickle files, which can run any code" in refused(lambda: opened(Path("some/model")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "added_tokens.json")
    assert "expected ordinary files, got a device or a pipe." in refused(lambda: opened(folder))


def test_pickles_are_never_read(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Pickled(canary)}, folder / "pytorch_model.bin")
    told = refused(lambda: opened(folder))
    assert "expected weights as safetensors (model.safetensors), got pytorch_model.bin: pickle files, which can" in told
    assert "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)." in told
    (folder / "pytorch_model.bin").rename(folder / "tf_model.h5")
    assert "got tf_model.h5. Save the model with transformers as safetensors." in refused(lambda: opened(folder))


@pytest.mark.parametrize("family", ["bert", "of-its-own"])
def test_code_of_a_model_is_never_run(folder: Path, canary: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass C: pass\n"
    (folder / "code.py").write_text(code, encoding="utf-8")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    change(folder / "config.json", model_type=family, auto_map=dict.fromkeys(names, "code.C"))
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    if family == "bert":
        assert opened(folder).config.num_labels == 2  # by transformers' own class
    else:
        told = refused(lambda: opened(folder))
        assert "config.json, field 'model.name': expected a family that transformers knows, got code of its own" in told
    change(folder / "config.json", model_type="bert", auto_map=None)
    (folder / "tokenizer.json").unlink()
    auto = {"AutoTokenizer": ["code.C", "code.C"]}
    change(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="C")
    assert "expected a Hugging Face model folder with safetensors weights" in refused(lambda: opened(folder))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attn_implementation": "someone/kernel"}, "expected one of transformers' own implementations, got 'someone/"),
        ({"_attn_implementation": {"": "a/b:c"}}, "expected one of transformers' own implementations, got 'a/b:c'."),
        (
            {"transformers_weights": "../x.safetensors"},
            "expected weights in model.safetensors, got '../x.safetensors'.",
        ),
        ({"num_hidden_layers": BILLION}, "expected num_hidden_layers of at most 4,096, got 1000000000."),
        ({"num_attention_heads": 10**4_000}, "expected num_attention_heads of at most 4,096, got 1000"),
        ({"num_labels": BILLION}, "expected num_labels of at most 1,000,000, got 1000000000."),
        ({"nested": {"depths": [2, BILLION]}}, "expected depths of at most 4,096, got 1000000000."),
        ({"hidden_size": 64}, "embeddings.LayerNorm.bias of the shape [64], as in config.json, got embeddings.Layer"),
        ({"hidden_size": BILLION}, "of the shape [1000000000], as in config.json"),
        ({"vocab_size": BILLION}, "embeddings.word_embeddings.weight of the shape [1000000000, 32], as in config"),
        ({"max_position_embeddings": 10**12}, "embeddings.position_embeddings.weight of the shape [1000000000000, 32]"),
        (
            {"num_hidden_layers": 4_000},
            "expected at most 64 layers for 39 stored tensors, got num_hidden_layers = 4000.",
        ),
        ({"num_hidden_layers": 64, "intermediate_size": 10_000}, "of the shape [10000"),
        ({"type_vocab_size": 2, "nested": {"n_layer": 65}}, "expected at most 64 layers for 39 stored tensors"),
        ({"num_hidden_layers": 3}, "expected all weights of the pretrained model, got 16 of them missing"),
        ({"hidden_size": "large"}, "expected a Hugging Face model folder with safetensors weights, got "),
        ({"hidden_size": -1}, "expected a Hugging Face model folder with safetensors weights, got "),
        ({"num_attention_heads": 0}, "expected a Hugging Face model folder with safetensors weights, got "),
        ({"model_type": ["bert"]}, "expected a Hugging Face model folder with safetensors weights, got "),
    ],
)
def test_a_configuration_that_is_not_of_the_weights(
    folder: Path, changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder / "config.json", **changes)
    if changes != {"num_hidden_layers": 3}:
        nothing_is_loaded(monkeypatch)
    assert problem in refused(lambda: opened(folder))


def test_a_model_that_would_compute_far_more_than_it_stores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_loaded(monkeypatch)
    change(folder / "config.json", num_hidden_layers=64)
    weights = load_file(folder / "model.safetensors")
    save_file({"cls.predictions.bias": weights["embeddings.LayerNorm.bias"]}, folder / "model.safetensors")
    change(folder / "config.json", hidden_size=4_096, intermediate_size=4_096)
    told = refused(lambda: opened(folder))
    assert "numbers that config.json describes, got 32. Take config.json and weights that belong together." in told


def test_configurations_that_are_no_json_objects(folder: Path) -> None:
    for content in (b"[]", b"\xff", b"[" * 100_000, b"{", b'{"a": "\\ud800"}'):
        (folder / "config.json").write_bytes(content)
        assert f"{folder}/config.json: expected " in refused(lambda: opened(folder))


def test_a_language_model_without_its_head(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "llama", "llama")
    change(folder / "config.json", tie_word_embeddings=False)
    told = refused(lambda: load_language_model(str(folder), load_tokenizer(str(folder)), Structure(), seed=0))
    assert (
        "expected all weights of the pretrained model, got 1 of them missing or of another shape: lm_head.weight."
        in told
    )
    chat = str(tiny_chat_model(tmp_path / "chat"))
    assert load_language_model(chat, load_tokenizer(chat), Structure(), seed=0) is not None


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/hostname",
        "a/b.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x.bin",
        "",
        ".",
    ],
)
def test_shards_are_plain_files_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    told = refused(lambda: opened(folder))
    assert f"index.json, field 'model.name': expected names of safetensors files in the folder, got {name!r}." in told


def test_shards(folder: Path) -> None:
    whole = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert opened(folder).config.num_labels == 2
    next(folder.glob("*.safetensors")).unlink()
    assert "expected a whole safetensors file, got No such file" in refused(lambda: opened(folder))
    index = folder / "model.safetensors.index.json"
    for content in ("{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "[]"):
        index.write_text(content, encoding="utf-8")
        assert "expected a" in refused(lambda: opened(folder))
    (folder / "shard-00001-model-00001-of-00002.safetensors").touch()
    assert "expected weights in model.safetensors or in shards of" in refused(lambda: opened(folder))


def bad_headers() -> dict[str, bytes]:
    def weights(header: Any, body: bytes = b"\0" * 8, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + body

    def one(shape: Any, offsets: Any, kind: str = "F32") -> dict[str, Any]:
        return {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets}}

    return {
        "empty": b"",
        "a header longer than the file": weights({}, length=2**40),
        "a header of more than 100 MB": weights({}, length=100_000_001) + b" " * 64,
        "a header of 2^64 - 1": weights({}, length=2**64 - 1),
        "no JSON": weights(b"{{{"),
        "deep JSON": weights(b'{"a":' * 10_000),
        "offsets beyond the file": weights(one([4], [0, 16])),
        "offsets of another size than the shape": weights(one([1], [0, 8])),
        "offsets that go backwards": weights(one([2], [8, 0])),
        "negative offsets": weights(one([2], [-8, 0])),
        "a shape whose product overflows": weights(one([2**63, 2**63], [0, 8])),
        "a negative shape": weights(one([-2], [0, 8])),
        "an unknown type": weights(one([2], [0, 8], "PICKLE")),
        "tensors on top of each other": weights({**one([2], [0, 8]), "b": one([2], [0, 8])["a"]}),
        "a hole between tensors": weights({**one([1], [0, 4]), "b": one([1], [8, 12])["a"]}, b"\0" * 12),
        "more bytes than tensors": weights(one([1], [0, 4])),
    }


@pytest.mark.parametrize("what", bad_headers())
def test_headers_that_lie(folder: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_loaded(monkeypatch)
    (folder / "model.safetensors").write_bytes(bad_headers()[what])
    told = refused(lambda: opened(folder))
    assert f"{folder}/model.safetensors, field 'model.name': expected a whole safetensors file, got " in told


def test_a_tokenizer_reads_nothing_outside_and_fits_its_model(folder: Path, tmp_path: Path, reviews: Path) -> None:
    other = tiny_model(tmp_path / "other", "llama")
    vocabulary = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary["model"]["vocab"]["from-outside"] = len(vocabulary["model"]["vocab"])
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(vocabulary), encoding="utf-8")
    change(folder / "tokenizer_config.json", tokenizer_file=str(outside), vocab_file="../outside.json")
    assert "from-outside" not in load_tokenizer(str(folder)).get_vocab()
    vocabulary["model"]["vocab"] |= {f"more-{number}": 300 + number for number in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    told = refused(lambda: chainrule.train(str(reviews), model=str(folder), out=tmp_path / "run"))
    assert "expected tokens with numbers below " in told
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_whose_template_names_no_token_is_refused_and_no_panic(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["post_processor"]["special_tokens"].pop("[SEP]")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert "expected a Hugging Face model folder" in refused(lambda: opened(folder))


@pytest.mark.parametrize("value", ["abc", -5, 0, None, [], float("nan")])
def test_lengths_that_are_none(folder: Path, value: Any) -> None:
    change(folder / "tokenizer_config.json", model_max_length=value)
    try:
        assert load_tokenizer(str(folder)).model_max_length >= 4
    except ModelError as error:
        assert "model_max_length" in str(error)  # noqa: PT017  (None means no limit)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, reviews: Path) -> Run:
    """A finished run whose artifact is adapters alone."""
    pytest.importorskip("peft")
    settings = {"training.steps": 2, "strategy": "lora", "strategy.options.merge": False, "training.threads": 1}
    out = tmp_path_factory.mktemp("adapters") / "run"
    return chainrule.train(str(reviews), model=str(tiny_bert), out=out, settings=settings)


def adapter_copy(adapters: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapters.path, tmp_path / "run")) / "artifact"


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config, megatron_core"),
        ({"auto_mapping": {"parent_library": "antigravity"}}, "auto_mapping"),
        ({"layer_replication": [[0, BILLION]]}, "layer_replication"),
        ({"corda_config": {"covariance_file": "x.pt"}}, "corda_config"),
        ({"rank_pattern": {".*": BILLION}}, "rank_pattern"),
        ({"peft_type": "LOHA", "r": BILLION}, "peft_type 'LOHA'"),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": BILLION, "prompt_tuning_init": "RANDOM"},
            "1,000,000,000 virtual tokens, stored are none",
        ),
        ({"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT"}, "prompt_tuning_init 'TEXT'"),
        ({"r": BILLION}, "r = 1000000000 with weights of rank 16"),
        ({"target_modules": "(a+)+$"}, "r = 16 with weights of rank 16"),
    ],
)
def test_adapters_with_options_of_their_own(
    adapters: Run, tmp_path: Path, changes: dict[str, Any], got: str, tiny_bert: Path
) -> None:
    artifact = adapter_copy(adapters, tmp_path)
    change(artifact / "adapter_config.json", **changes)
    assert f"got {got}." in refused(lambda: chainrule.predict(artifact.parent, text="good"))
    assert "antigravity" not in sys.modules


def test_adapters_as_pickles_incomplete_or_taken_for_a_model(adapters: Run, tmp_path: Path, canary: Path) -> None:
    artifact = adapter_copy(adapters, tmp_path)
    weights = artifact / "adapter_model.safetensors"
    assert "expected a whole model, got adapters of another one." in refused(lambda: opened(artifact))
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if "lora_B" not in name}, weights)
    assert "expected adapters that fit their base model, got Found missing adapter keys" in refused(
        lambda: chainrule.predict(artifact.parent, text="good")
    )
    weights.unlink()
    torch.save({"x": Pickled(canary)}, artifact / "adapter_model.bin")
    assert "expected a whole safetensors file, got No such file" in refused(
        lambda: chainrule.predict(artifact.parent, text="good")
    )


@pytest.fixture
def artifact(trained: Run, tmp_path: Path) -> Path:
    """A good artifact inside its run, to be made a bad one."""
    return Path(shutil.copytree(trained.path, tmp_path / "run")) / "artifact"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 99}, "field 'format_version': expected a manifest of format 1, got format 99. Use the"),
        ({"labels": ["a", "b", "c"]}, "field 'labels': expected 2 labels as in config.json, got ('a', 'b', 'c')."),
        ({"inputs": ["os.system"]}, "field 'inputs': expected inputs of text-classification: text, text_a, text_b"),
        ({"inputs": []}, "field 'inputs': expected inputs of text-classification"),
        ({"loads_in": []}, "field 'loads_in': expected Tuple should have at least 1 item after validation, not 0"),
        ({"max_length": 0}, "field 'max_length': expected greater than or equal to 1, got 0."),
        ({"max_length": "x" * 999}, "field 'max_length': expected a valid integer"),
        ({"recipe": {"data": []}}, "field 'recipe': expected a mapping under data, got {'data': []}."),
        ({"recipe": {"strategy": "full"}}, "expected a mapping under strategy, got {'strategy': 'full'}."),
        (
            {"recipe": {"structure": {"poolinG": None}}},
            "keep_layers, pooling, reinitialise_top under structure.poolinG, got {'structure': {'poolinG': None}}.",
        ),
        (
            {"recipe": {"data": {"clean": {"html": "perhaps"}}}},
            "field 'recipe': expected true or false for unicode_nfkc, html, ",
        ),
        ({"code": "import os"}, "field 'code': expected one of the keys base_model, base_sha256, chainrule_version"),
        ({"task": "os.system"}, "field 'task.name': expected one of text-classification"),
        ({"labels": ["\ud800", "b"]}, "expected UTF-8 JSON, got 'utf-8' codec can't encode"),
    ],
)
def test_manifests_that_lie(artifact: Path, changes: dict[str, Any], problem: str) -> None:
    change(artifact / MANIFEST, **changes)
    assert problem in refused(lambda: load_predictor(Artifact.read(artifact)))


def test_manifests_that_are_none(artifact: Path) -> None:
    for content in (b"[]", b"\xff", b"[" * 100_000, b"", b'{"format_version": NaN}'):
        (artifact / MANIFEST).write_bytes(content)
        assert "chainrule.json" in refused(lambda: Artifact.read(artifact))


def test_row_hashes_and_baselines_of_something_else(artifact: Path) -> None:
    for arrays in ({"seen/train": np.zeros(3)}, {"cut/test": np.zeros((2, 2), np.uint64)}):
        save_file(arrays, artifact / ROWS)
        assert "rows.safetensors: expected hashes of rows as safetensors, got other arrays: " in refused(
            lambda: recorded_rows(Artifact.read(artifact))
        )
    (artifact / ROWS).write_bytes(b"\xff" * 99)
    assert "expected hashes of rows as safetensors, got " in refused(lambda: recorded_rows(Artifact.read(artifact)))
    (artifact / ROWS).unlink()
    change(artifact.parent / "baselines" / "baselines.json", fields=["text_a"])
    assert "expected class from text with 1 outputs, as in the manifest, got class from text_a with 1" in refused(
        lambda: chainrule.evaluate(artifact.parent)
    )


@pytest.mark.parametrize("name", ["summary.json", "evaluations/validation.json", "chainrule.json"])
def test_damaged_files_of_a_run_are_named(artifact: Path, name: str) -> None:
    run = artifact.parent
    (artifact / name if name == MANIFEST else run / name).write_bytes(b'{"a": ')
    assert f"{Path(name).name}: expected UTF-8 JSON, got " in refused(
        lambda: chainrule.show(artifact if name == MANIFEST else run)
    )


def found(**changes: Any) -> tuple[Found, nn.Linear, Standing]:
    """A checkpoint of a layer, with some of it changed, and what it is to be put into."""
    model = nn.Linear(3, 2)
    optimizer = NativeAdamW([{"params": list(model.parameters())}], (0.9, 0.999), 1e-8)
    state = {"step": 3, "optimizer": {"weight": {"tensors": ["exp_avg", "exp_avg_sq"], "numbers": {"step": 3}}}}
    tensors = {"weight/exp_avg": torch.zeros(2, 3), "weight/exp_avg_sq": torch.zeros(2, 3)}
    weights = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    state |= {"best": None, "untuned": False, "seconds": 1.0, "generators": {}, "losses": {}}
    parts: dict[str, Any] = {"state": state, "weights": weights, "optimizer": tensors}
    for key, value in changes.items():
        parts[key] = parts[key] | value
    return (
        Found(Path("step-3"), parts["state"], parts["weights"], parts["optimizer"]),
        model,
        Standing(Progress(0, optimizer)),
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weights": {"bias": torch.zeros(1)}}, "bias is of the shape [1], not [2]"),
        ({"weights": {"other": torch.zeros(1)}}, "'other'"),
        ({"optimizer": {"weight/exp_avg": torch.zeros(1)}}, "exp_avg of the optimizer does not fit a parameter of the"),
        ({"optimizer": {"weight/exp_avg": torch.zeros(2, 3).half()}}, "exp_avg of the optimizer does not fit a"),
        ({"state": {"optimizer": {"weight": {"tensors": [], "numbers": {"step": 3}}}}}, "a part of the optimizer's"),
        (
            {"state": {"optimizer": {"weight": {"tensors": ["exp_avg", "exp_avg_sq"], "numbers": {"step": -9}}}}},
            "steps",
        ),
        ({"state": {"optimizer": {"weight": {"tensors": ["../x"], "numbers": {}}}}}, "weight/../x"),
        ({"state": {"optimizer": []}}, "has no attribute"),
    ],
)
def test_checkpoints_made_by_others_reach_no_compiled_code(changes: dict[str, Any], problem: str) -> None:
    checkpoint, model, standing = found(**changes)
    told = refused(lambda: checkpoint.put_into(model, standing))
    assert told.startswith("step-3: expected a checkpoint of this model, got ")
    assert problem in told


@pytest.mark.parametrize(
    "late",
    [
        {"last": torch.full((2,), 9, dtype=torch.int32)},
        {"last": torch.zeros(1, dtype=torch.int32)},
        {"past": torch.zeros(3, 1)},
    ],
)
def test_late_rows_of_a_checkpoint_stay_inside_their_table(late: dict[str, torch.Tensor]) -> None:
    both = {"last": torch.zeros(2, dtype=torch.int32), "past": torch.zeros(3, 8)} | late
    names = ["exp_avg", "exp_avg_sq", "last", "past"]
    state = {"optimizer": {"weight": {"tensors": names, "numbers": {"step": 3}}}}
    checkpoint, model, standing = found(state=state, optimizer={f"weight/{key}": value for key, value in both.items()})
    assert "of the optimizer does not fit" in (told := refused(lambda: checkpoint.put_into(model, standing))) or (
        "the optimizer counts steps that were never made" in told
    )
