"""Real rows of chats with tools, and of plain texts: what is learned of them, and a few steps of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import chainrule
from chainrule.core.recipe import Data
from chainrule.data.chat import turns_of
from chainrule.data.load import load
from chainrule.errors import AssetError, MissingExtraError
from chainrule.models.load import load_tokenizer
from chainrule.tasks.conversation import encode, render, tell_tools
from chainrule.tasks.text_generation import TASK
from chainrule.testing.models import tiny_language_model

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {
    "training.steps": 3,
    "training.batch_size": 4,
    "training.precision": "float32",
    "training.threads": 1,
    "task.options.max_new_tokens": 4,
    "data.on_bad_row": "skip",
}
ROLES = {"function_call": "assistant", "observation": "tool"}


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers behind the tokenizer of smollm2."""
    try:
        tokenizer = load_tokenizer("smollm2")
    except (AssetError, MissingExtraError) as error:
        pytest.skip(f"the catalog model is not here: {error}")
    folder = tmp_path_factory.mktemp("smol")
    tiny_language_model(len(tokenizer), positions=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def first_rows(source: Path, folder: Path, train: int, validation: int) -> Path:
    """A folder with the first rows of each split."""
    folder.mkdir()
    for name, count in (("train", train), ("validation", validation)):
        rows = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_calls_are_learned_and_what_tools_gave_is_not(smol: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("glaive_toolcall")
    train = load(str(source), Data(), TASK).splits["train"]
    tokenizer = load_tokenizer(str(smol))
    tell_tools(tokenizer, train.inputs["messages"])
    rows = np.arange(40)
    some = train.take(rows)
    encoded = encode(tokenizer, some.inputs, some.targets, 100_000)
    assert encoded.trained is not None
    raw = lines(source / "train.jsonl")
    assert any(turn["role"] == "function_call" for row in raw[:40] for turn in row["messages"])
    for row in range(len(rows)):
        own = encoded.take(np.array([row]))
        assert own.trained is not None
        written = tokenizer.decode(own.ids[own.trained])
        replies = [t["content"] for t in raw[row]["messages"] if t["role"] in ("assistant", "function_call")]
        assert written == "".join(f"{text}<|im_end|>" for text in replies)


def test_tools_are_told_in_training_as_plain_transformers_tells_them(
    smol: Path, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    source = first_rows(shared_data("glaive_toolcall"), tmp_path / "rows", 40, 6)
    run = chainrule.train(
        str(source), out=tmp_path / "run", task="text-generation", model=str(smol), max_length=192, settings=SETTINGS
    )
    told = json.loads((run.path / "check.json").read_text(encoding="utf-8"))
    kinds = {found["kind"]: found["message"] for found in told["findings"]}
    assert kinds["tools-told"].startswith("The model's chat template tells of no tools: they are told in a system")
    assert "no token to learn from" in kinds["skipped"]
    assert run.summary["metrics"]["loss"] < 13
    plain = AutoTokenizer.from_pretrained(run.artifact.path)
    train = load(str(source), Data(), TASK).splits["train"]
    contexts, raw = train.inputs["messages"], lines(source / "train.jsonl")
    for row in [row for row, text in enumerate(contexts) if "tool" in {t["role"] for t in turns_of(text)}][:5]:
        turns = [
            {"role": ROLES.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in raw[row]["messages"]
        ]
        expected = plain.apply_chat_template(turns, tools=json.loads(raw[row]["tools"]), tokenize=False)
        reply = {"role": "assistant", "content": train.targets[row]}
        assert render(plain, [*turns_of(contexts[row]), reply]).text == expected
        assert raw[row]["tools"].split('"')[3] in expected, "the name of a tool"
    question = {"messages": [{"role": "user", "content": "Hello"}], "tools": '[{"name": "look"}]'}
    new = tmp_path / "new.jsonl"
    new.write_text(json.dumps(question) + "\n", encoding="utf-8")
    assert chainrule.predict(run, str(new), out=tmp_path / "said.jsonl") == 1


def test_plain_texts_of_the_web_are_learned_token_by_token(
    smol: Path, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    source = shared_data("c4_demo")
    report = chainrule.check(str(source), task="text-generation", model=str(smol), max_length=256)
    assert report.ok
    kinds = {found.kind for found in report.findings}
    assert {"windowed", "replacement-character"} <= kinds
    tokenizer = load_tokenizer(str(smol))
    texts = [row["text"] for row in lines(source / "train.jsonl")]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    assert report.splits["train"].lengths["tokens_learned"] == sum(lengths), "all but the first, and an end"
    few = first_rows(source, tmp_path / "rows", 12, 2)
    run = chainrule.train(
        str(few), out=tmp_path / "run", task="text-generation", model=str(smol), max_length=128, settings=SETTINGS
    )
    assert torch.isfinite(torch.tensor(run.summary["metrics"]["loss"]))
    assert "untuned" in run.summary["verdict"]
