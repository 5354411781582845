"""Every format over every task: what is written says what the model says, or is refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Artifact, Parity, Run, Step
from chainrule.errors import GateError, ModelError, OutputError, RecipeError
from chainrule.evaluation.handover import Written, hand_over
from chainrule.evaluation.parity import Bound, require
from chainrule.exporters import EXPORTERS
from chainrule.exporters.gguf import in_pairs
from chainrule.exporters.transformers import Transformers
from chainrule.inference.predict import load_predictor
from chainrule.testing.models import tiny_byte_chat_model
from chainrule.testing.runs import ROWS, short_run

pytestmark = pytest.mark.unit

GRAPHS = [task for task in ROWS if task not in ("text-generation", "preference", "seq2seq")]
CASES = [
    *(("onnx", task) for task in ("token-classification", "question-answering")),
    *(("openvino", task) for task in ("text-classification", "question-answering", "image-classification")),
    *(("torch-export", task) for task in GRAPHS),
    *(("hf", task) for task in ROWS),
]
Runs = Callable[[str], Run]
Exports = Callable[[str, str], tuple[Artifact, Step]]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished run of a task; the same one each time."""
    made: dict[str, Run] = {}

    def run(task: str) -> Run:
        if task not in made:
            made[task] = short_run(task, tmp_path_factory.mktemp("runs") / task)
        return made[task]

    return run


@pytest.fixture(scope="session")
def exports(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """What a run is exported to, compared on 40 rows; the same folder each time, for tests that only read it."""
    made: dict[tuple[str, str], tuple[Artifact, Step]] = {}

    def export(to: str, task: str) -> tuple[Artifact, Step]:
        if (to, task) not in made:
            out = tmp_path_factory.mktemp("exports") / "out"
            made[to, task] = chainrule.export(runs(task), to, out, limit=40)
        return made[to, task]

    return export


@pytest.mark.parametrize(("to", "task"), CASES)
def test_what_is_written_is_the_same_model(to: str, task: str, runs: Runs, exports: Exports) -> None:
    run = runs(task)
    artifact, step = exports(to, task)
    parity = step.parity
    assert parity.distance <= 1e-4 * max(parity.largest, 1)
    assert parity.data is not None
    assert parity.rows >= 3
    manifest = Artifact.read(artifact.path).manifest
    assert manifest == artifact.manifest
    assert manifest.parent == run.artifact.manifest.weights_sha256
    assert [done.step for done in manifest.lineage] == [f"export --to {to}"]
    assert manifest.lineage[0].parity == parity
    if parity.metric not in (None, "loss"):
        assert parity.before == parity.after
    if task == "text-classification":
        assert parity.agreement == 1.0


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "sentence-similarity"])
def test_an_exported_model_predicts_and_is_evaluated(task: str, runs: Runs, exports: Exports, tmp_path: Path) -> None:
    run, (artifact, _) = runs(task), exports("onnx", task)
    rows = ROWS[task](tmp_path)
    first, second = (chainrule.predict(model, str(rows)) for model in (run, artifact.path))
    assert isinstance(first, list)
    assert isinstance(second, list)
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            if isinstance(value, float | list) and name.startswith("predicted") and task != "token-classification":
                np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-5)
    scores = [chainrule.evaluate(model, str(rows)).metrics for model in (run, artifact.path)]
    for name, estimate in scores[0].items():
        assert scores[1][name].value == pytest.approx(estimate.value, abs=1e-5)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_example_runs_without_chainrule_and_torch(engine: str, runs: Runs, exports: Exports) -> None:
    run, texts = runs("text-classification"), ["a good film", "the room was bad and cold"]
    artifact, _ = exports(engine, "text-classification")
    found = _example(artifact.path, texts)
    expected = chainrule.predict(run, text=texts)
    assert isinstance(expected, list)
    for line, row in zip(found, expected, strict=True):
        label, score = line.split("\t")
        assert label == row["predicted_label"]
        assert float(score) == pytest.approx(row["predicted_score"], abs=2e-4 if engine == "onnx" else 1e-2)


@pytest.mark.slow
def test_the_examples_of_other_tasks_run(runs: Runs, tmp_path: Path) -> None:
    given = {
        "regression": ["a good film", "a bad film"],
        "token-classification": ["a good film"],
        "question-answering": ["what is good", "the film is good"],
        "ranking": ["good film", "a good film", "a bad room"],
    }
    for task, words in given.items():
        chainrule.export(runs(task), "onnx", tmp_path / task, limit=10)
        lines = _example(tmp_path / task, words)
        if task == "regression":
            expected = chainrule.predict(runs(task), text=words)
            assert isinstance(expected, list)
            wanted = [row["predicted_score"] for row in expected]
            assert [float(line) for line in lines] == pytest.approx(wanted, abs=2e-4)
        if task == "ranking":
            asked = {"query": [words[0]] * 2, "item": words[1:]}
            expected = chainrule.predict(runs(task), text=asked)
            assert isinstance(expected, list)
            assert [float(line) for line in lines] == pytest.approx([r["predicted_score"] for r in expected], abs=2e-4)
        assert lines


def test_the_example_of_images(runs: Runs, exports: Exports, tmp_path: Path) -> None:
    run, (artifact, _) = runs("image-classification"), exports("openvino", "image-classification")
    image = next(ROWS["image-classification"](tmp_path).parent.glob("*.png"))
    ((_, label, score),) = [line.split("\t") for line in _example(artifact.path, [str(image)])]
    expected = chainrule.predict(run, text=[str(image)])
    assert isinstance(expected, list)
    assert label == expected[0]["predicted_label"]
    assert float(score) == pytest.approx(expected[0]["predicted_score"], abs=1e-3)


def _example(folder: Path, words: list[str]) -> list[str]:
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'torch', 'chainrule', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(folder / "example.py"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_archive_of_torch_runs_without_chainrule(exports: Exports) -> None:
    artifact, _ = exports("torch-export", "text-classification")
    program = """
import sys, torch
model = torch.export.load(sys.argv[1]).module()
for rows, tokens in ((1, 3), (5, 17)):
    ids = torch.ones(rows, tokens, dtype=torch.long)
    logits = model(input_ids=ids, attention_mask=ids, token_type_ids=ids * 0)["logits"]
    assert logits.shape == (rows, 2)
assert not {"chainrule", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(artifact.path / "model.pt2")], check=True)
    with pytest.raises(ModelError, match="Chainrule does not run this model") as told:
        chainrule.predict(artifact.path, text="good")
    assert str(told.value.problems[0].got) == "one that loads in torch alone"


def test_adapters_are_merged(tmp_path: Path) -> None:
    run = short_run(
        "text-classification",
        tmp_path / "lora",
        strategy={"name": "lora", "options": {"merge": False}},
        training__steps=20,
    )
    assert (run.path / "artifact" / "adapter_config.json").is_file()
    for to in ("hf", "openvino"):
        _, step = chainrule.export(run, to, tmp_path / to)
        assert step.parity.distance <= 1e-4 * step.parity.largest
    assert not (tmp_path / "hf" / "adapter_config.json").exists()
    first, second = (chainrule.predict(model, text=["good", "a bad film"]) for model in (run, tmp_path / "hf"))
    assert [row["predicted_label"] for row in first] == [row["predicted_label"] for row in second]  # type: ignore[union-attr]


@pytest.mark.parametrize("numbers", ["f32", "f16", "q8_0"])
def test_gguf_says_what_the_model_says(numbers: str, tmp_path: Path) -> None:
    chat = tiny_byte_chat_model(tmp_path / "chat")
    run = short_run("text-generation", tmp_path / "x", model=str(chat), strategy="lora")
    _, step = chainrule.export(run, "gguf", tmp_path / "out", options={"numbers": numbers})
    parity = step.parity
    assert parity.distance <= {"f32": 1e-5, "f16": 5e-3, "q8_0": 5e-2}[numbers] * parity.largest
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    own = AutoTokenizer.from_pretrained(run.path / "artifact")
    ids = own("a good film, 2024!", return_tensors="pt").input_ids
    assert tokenizer("a good film, 2024!", return_tensors="pt").input_ids.tolist() == ids.tolist()
    before = load_predictor(run.artifact, precision="float32").forward.model(input_ids=ids).logits
    near = {"f32": 1e-3, "f16": 0.03, "q8_0": 0.5}[numbers]
    assert torch.allclose(model.eval()(input_ids=ids).logits, before, atol=near)


def test_rows_of_queries_and_keys_are_put_in_pairs() -> None:
    halves = np.arange(8).reshape(8, 1)  # two heads of four rows: 0 1 | 2 3 and 4 5 | 6 7
    assert in_pairs(halves, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("task", "to", "got"),
    [
        ("text-generation", "onnx", "one that writes text token by token, which takes more than one graph"),
        ("seq2seq", "openvino", "one that writes text token by token, which takes more than one graph"),
        ("text-classification", "gguf", "a model of the kind bert for text-classification"),
        ("text-generation", "gguf", "a tokenizer other than one of byte pairs"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(task: str, to: str, got: str, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"This model cannot be exported to {to}") as told:
        chainrule.export(runs(task), to, tmp_path / "out")
    assert told.value.problems[0].got == got
    assert not (tmp_path / "out").exists()


def test_an_lstm_and_a_chain_are_refused(tmp_path: Path) -> None:
    lstm = short_run("text-classification", tmp_path / "lstm", model="lstm")
    with pytest.raises(ModelError) as told:
        chainrule.export(lstm, "onnx", tmp_path / "out")
    assert told.value.problems[0].got == "an LSTM over packed rows, which torch.export does not take"
    chain = short_run("token-classification", tmp_path / "chain", loss="crf")
    with pytest.raises(ModelError) as told:
        chainrule.export(chain, "onnx", tmp_path / "out")
    assert told.value.problems[0].got == "a chain over tags, which is no part of the graph"


def test_a_graph_is_not_exported_again(runs: Runs, tmp_path: Path) -> None:
    chainrule.export(runs("regression"), "onnx", tmp_path / "out")
    with pytest.raises(ModelError) as told:
        chainrule.export(tmp_path / "out", "openvino", tmp_path / "again")
    assert told.value.problems[0].got == "one that was made for onnx"


def test_without_real_rows_tokens_are_drawn(runs: Runs, tmp_path: Path) -> None:
    chainrule.export(runs("text-classification"), "hf", tmp_path / "alone")
    _, step = chainrule.export(tmp_path / "alone", "onnx", tmp_path / "out")
    parity = step.parity
    assert (parity.data, parity.rows, parity.metric) == (None, 16, None)
    assert parity.largest > 0
    chainrule.export(runs("seq2seq"), "hf", tmp_path / "writer")
    with pytest.raises(RecipeError, match="cannot be compared with the one it was made from"):
        chainrule.export(tmp_path / "writer", "hf", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_another_model_is_not_put_in_place(runs: Runs, tmp_path: Path) -> None:
    parent = load_predictor(runs("text-classification").artifact, precision="float32")

    def write(folder: Path) -> Written:
        changed = load_predictor(parent.artifact, precision="float32")
        with torch.no_grad():
            changed.forward.model.classifier.weight.mul_(1.01)
        return Transformers().write(changed, folder)

    with pytest.raises(GateError, match="export --to hf gave another model; it was not put in place") as told:
        hand_over(parent, tmp_path / "out", "export --to hf", write, None)
    assert told.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_each_bound_says_what_was_expected() -> None:
    found = Parity(rows=100, distance=0.2, largest=1.0, agreement=0.9, metric="accuracy", before=0.9, after=0.88)
    parity = found.model_copy(update={"difference": -0.02, "low": -0.04, "high": 0.0})
    require(parity, Bound(), "this")
    with pytest.raises(GateError) as told:
        require(parity, Bound(distance=0.1, agreement=0.95, loss=(0.01, 0.03)), "this")
    assert [f"{problem.expected}: {problem.got}" for problem in told.value.problems] == [
        "outputs within 0.1 of the largest (1): differences of up to 0.2",
        "the same answer for at least 95 % of the rows: 90.00 % of 100",
        "accuracy at most 0.01 lower than 0.9000: 0.8800",
        "accuracy surely at most 0.03 lower (95 % interval of the difference): -0.0400 to +0.0000 on 100 rows",
    ]
    with pytest.raises(GateError):
        require(Parity(rows=1, distance=float("nan"), largest=1.0), Bound(distance=0.1), "this")


def test_damaged_graphs_are_told(runs: Runs, tmp_path: Path) -> None:
    for engine, file in (("onnx", "model.onnx"), ("openvino", "openvino_model.xml")):
        chainrule.export(runs("regression"), engine, tmp_path / engine)
        (tmp_path / engine / file).write_bytes(b"nothing of the kind")
        with pytest.raises(ModelError, match="The model cannot be loaded"):
            chainrule.predict(tmp_path / engine, text="good")
        (tmp_path / engine / file).unlink()
        with pytest.raises(ModelError) as told:
            chainrule.predict(tmp_path / engine, text="good")
        assert told.value.problems[0].got == "no such file"


@pytest.mark.parametrize("location", ["../secret", "{}/secret"])
def test_a_graph_reads_no_file_outside_its_folder(location: str, runs: Runs, tmp_path: Path) -> None:
    chainrule.export(runs("regression"), "onnx", tmp_path / "out")
    (tmp_path / "secret").write_bytes(np.arange(1024, dtype=np.float32).tobytes())
    model = onnx.load(tmp_path / "out" / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if 0 < np.prod(tensor.dims) <= 1024)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location.format(tmp_path)
    (tmp_path / "out" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="The model cannot be loaded"):
        chainrule.predict(tmp_path / "out", text="good")


def test_names_and_folders_are_checked_first(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tflite"):
        chainrule.export(runs("regression"), "tflite", tmp_path / "out")
    with pytest.raises(RecipeError):
        chainrule.export(runs("regression"), "onnx", tmp_path / "out", options={"numbers": "f16"})
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError):
        chainrule.export(runs("regression"), "onnx", tmp_path / "there")


def test_the_command_prints_one_document(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", str(runs("regression").path), "--to", "hf", "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["runtime"] == "torch"
    assert printed["parity"]["distance"] < 1e-4
    assert set(chainrule.show("exporters")["exporters"][0]) >= {"name", "summary"}
    assert [row["name"] for row in chainrule.show("exporters")["exporters"]] == list(EXPORTERS)
