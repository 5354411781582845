"""The command line: results on stdout, everything else on stderr, exit codes, every bad input in one message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chainrule.api import SHOWN
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.testing.data import sentences, write_csv

pytestmark = pytest.mark.unit

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def error_of(call: Call, *words: str | Path) -> dict[str, Any]:
    """The error document of a command that must fail with exit code 2."""
    code, out, _ = call(*words, "--json")
    assert code == 2
    error: dict[str, Any] = json.loads(out)["error"]
    assert error["message"]
    assert all(set(problem) == {"where", "expected", "got", "todo"} for problem in error["problems"])
    assert all(set(problem["where"]) == {"file", "row", "line", "field"} for problem in error["problems"])
    return error


def test_check_tells_and_exits_by_what_it_found(call: Call, reviews: Path, tmp_path: Path) -> None:
    code, out, _ = call("check", reviews)
    assert code == 0
    assert "The data can be used." in out
    bad = write_csv(tmp_path / "bad.csv", [*sentences(10), {"text": "", "label": "positive"}])
    code, out, _ = call("check", bad, "--json")
    assert code == 2
    report = json.loads(out)
    assert not report["ok"]
    assert report["problems"][0]["where"]["row"] == 11


def test_check_counts_tokens_when_asked(call: Call, reviews: Path, tiny_bert: Path) -> None:
    code, out, _ = call("check", reviews, "--model", tiny_bert, "--max-length", "8", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["max_length"] == 8
    assert any(finding["kind"] == "too-long" for finding in report["findings"])


def test_train_evaluate_predict_show(call: Call, reviews: Path, tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--model", tiny_bert, "--task", "text-classification", "--strategy", "partial", "--epochs", "1"]
    more = ["--set", "strategy.options.top=1", "--set", "training.threads=1", "--seed", "3"]
    code, stdout, stderr = call("train", reviews, *words, *more, "--out", out, "--json")
    assert code == 0, stderr
    summary = json.loads(stdout)
    assert (summary["strategy"], summary["primary_metric"]) == ("partial", "accuracy")
    assert "Data: 320 train, 40 validation, 40 test rows" in stderr
    code, stdout, _ = call("evaluate", out, reviews, "--split", "test", "--limit", "20", "--json")
    assert code == 0
    report = json.loads(stdout)
    assert {"value", "low", "high"} == set(report["metrics"]["accuracy"])
    assert {"text", "baseline", "better", "difference", "low", "high", "p_value"} == set(report["verdict"])
    assert (report["rows"], report["limit"]) == (20, 20)
    code, stdout, _ = call("evaluate", out, reviews)
    assert code == 0
    assert "accuracy *" in stdout
    code, stdout, _ = call("predict", out, "--text", "a good film", "--json")
    assert code == 0
    assert set(json.loads(stdout)["predictions"][0]) == {"predicted_label", "predicted_score"}
    code, stdout, _ = call("predict", out, reviews)
    assert stdout.splitlines()[0] == "text,label,predicted_label,predicted_score"
    assert len(stdout.splitlines()) == 401
    code, stdout, _ = call("show", out)
    assert code == 0
    assert "strategy: partial" in stdout


def test_a_recipe_file_with_flags_on_top(call: Call, reviews: Path, tiny_bert: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {reviews}\ntask: text-classification\nmodel: {tiny_bert}\nstrategy: head\nseed: 5\n"
        "training: {epochs: 1, threads: 1, precision: float32}\n",
        encoding="utf-8",
    )
    code, stdout, stderr = call("train", "--recipe", recipe, "--out", tmp_path / "run", "--seed", "6", "--json")
    assert code == 0, stderr
    resolved = (tmp_path / "run" / "resolved.yaml").read_text(encoding="utf-8")
    assert "seed: 6" in resolved
    assert json.loads(stdout)["strategy"] == "head"


@pytest.mark.parametrize("what", SHOWN)
def test_show_lists_what_there_is(call: Call, what: str) -> None:
    code, out, _ = call("show", what)
    assert code == 0
    code, as_json, _ = call("show", what, "--json")
    rows = [row for rows in json.loads(as_json).values() for row in rows]
    assert rows
    assert all(row["name"].split("/")[0] in out for row in rows)


def test_people_get_one_line_errors_and_machines_json(call: Call, trained: Run) -> None:
    code, out, err = call("predict", "no-such-run", "--text", "x")
    assert (code, out) == (2, "")
    assert err.startswith("Error: There is no fine-tuned model at no-such-run.")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "field", "got"),
    [
        (["train", "--epoch", "3"], None, "No such option: --epoch"),
        (["train", "x.csv", "--epochs", "many"], "--epochs", "Invalid value for '--epochs'"),
        (["fine-tune"], None, "No such command 'fine-tune'"),
        (["evaluate"], "model", "Missing argument 'model'"),
    ],
)
def test_usage_errors_are_documents_too(call: Call, words: list[str], field: str | None, got: str) -> None:
    error = error_of(call, *words)
    assert error["message"] == "The command is not understood."
    assert got in error["problems"][0]["got"]


def test_wrong_settings_are_reported_together(call: Call, reviews: Path) -> None:
    wrong = ["--set", "optimizer.learning_rate=-1", "--set", "training.epoch=3", "--epochs", "0"]
    error = error_of(call, "train", reviews, "--model", "minilm", *wrong)
    assert {problem["where"]["field"] for problem in error["problems"]} == {
        "optimizer.learning_rate", "training.epoch", "training.epochs",
    }  # fmt: skip
    negative = next(p for p in error["problems"] if p["where"]["field"] == "optimizer.learning_rate")
    assert (negative["expected"], negative["got"]) == ("greater than 0", "-1")


@pytest.mark.parametrize(
    ("name", "content", "message", "got"),
    [
        ("none.csv", None, "Cannot read the data", "nothing at that path"),
        ("empty.csv", b"", "is empty", "empty"),
        ("header.csv", b"text,label\n", "Cannot read the data", "only a header ('text', 'label')"),
        (
            "columns.csv",
            b"words,mood\nx,good\ny,bad\n",
            "The columns of the data do not fit the task.",
            "the columns 'words', 'mood'",
        ),
        ("one.csv", b"text,label\n" + b"".join(b"word %d,good\n" % n for n in range(30)), "", "only the one label"),
        ("nul.csv", b"text,label\ngood\0film,a\nbad,b\n", "", "NUL"),
        ("utf16.csv", "text,label\nx,a\ny,b\n".encode("utf-16"), "", "UTF-16"),
    ],
)
def test_bad_data_stops_training_with_a_reason(
    call: Call, tiny_bert: Path, tmp_path: Path, name: str, content: bytes | None, message: str, got: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    error = error_of(call, "train", file, "--model", tiny_bert, "--out", tmp_path / "run")
    assert message in error["message"]
    assert any(got in problem["got"] + problem["expected"] for problem in error["problems"]), error
    assert not (tmp_path / "run").exists()


def test_a_label_that_training_never_saw(call: Call, tiny_bert: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "data" / "train.csv", sentences(60))
    write_csv(tmp_path / "data" / "test.csv", [*sentences(20, seed=1), {"text": "a film", "label": "mixed"}])
    error = error_of(call, "train", tmp_path / "data", "--model", tiny_bert, "--out", tmp_path / "run")
    problem = error["problems"][0]
    assert (problem["where"]["row"], problem["where"]["field"]) == (21, "label")
    assert "mixed" in problem["got"]


def test_a_cell_of_ten_megabytes(call: Call, tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "big.csv", [*sentences(40), {"text": "good " * 2_000_000, "label": "positive"}])
    code, out, err = call("check", data, "--json")
    assert code == 0, err
    assert json.loads(out)["splits"]["train"]["rows"] > 30


def test_a_folder_without_splits(call: Call, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    error = error_of(call, "train", tmp_path / "folder", "--model", tiny_bert, "--out", tmp_path / "run")
    assert "train" in str(error)


def test_a_hub_name_without_the_hub_names_the_offline_choices(call: Call, reviews: Path) -> None:
    error = error_of(call, "train", reviews, "--model", "nobody/no-such-model")
    assert "HF_HUB_OFFLINE is set" in error["message"]
    assert "minilm" in error["message"]


def test_nothing_heavy_is_loaded_for_help() -> None:
    script = "import sys; from chainrule.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    script += "print(sorted({'torch', 'transformers', 'sklearn', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--epochs" in done.stdout
    assert done.stderr.strip() == "[]"


def test_half_a_pair_is_refused(call: Call, trained: Run, reviews: Path) -> None:
    error = error_of(call, "predict", trained.path, reviews, "--text-a", "x")
    assert "--column text_a=COLUMN" in error["problems"][0]["got"]


def test_a_name_too_long_for_a_path_is_wrong_input_everywhere(call: Call, trained: Run, reviews: Path) -> None:
    name = "a" * 400
    assert "too long" in error_of(call, "train", "--recipe", name)["problems"][0]["got"].lower()
    assert error_of(call, "evaluate", name, reviews)["problems"][0]["got"] == "no such folder"
    assert error_of(call, "show", name)["problems"][0]["got"] == "no such path"
    assert error_of(call, "predict", trained.path, reviews, "--out", f"{name}.csv")["problems"][0]["got"]
    assert error_of(call, "train", reviews, "--model", f"./{name}")["problems"][0]["got"] == "no such folder"


def test_broken_weights_and_a_newer_format_are_told(call: Call, trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.artifact.path, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    problem = error_of(call, "predict", tmp_path / "model", "--text", "good")["problems"][0]
    assert problem["expected"] == "a whole safetensors file"
    manifest = tmp_path / "model" / "chainrule.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"format_version": 1', '"format_version": 2'))
    assert error_of(call, "show", tmp_path / "model")["problems"][0]["got"] == "format 2"


def test_check_gradients_exits_by_what_it_found(call: Call, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call("check-gradients", tiny_bert, "--kernels")
    assert code == 0
    assert out.splitlines()[0] == f"{tiny_bert}: greatest relative error"
    assert "bfloat16" in out
    assert out.splitlines()[-1].startswith("Backward is right: ")

    def cut_off(self: Any, hidden_states: Any, input_tensor: Any) -> Any:
        return self.LayerNorm(self.dense(hidden_states) + input_tensor.detach())

    monkeypatch.setattr("transformers.models.bert.modeling_bert.BertSelfOutput.forward", cut_off)
    code, out, _ = call("check-gradients", tiny_bert)
    assert code == 3
    line = "bert.encoder.layer.0.attention.output (BertSelfOutput), with respect to input_tensor: no gradient arrives"
    assert f"wrong: {line}" in out
    assert f"Backward is wrong. The first: {line}" in out
    code, out, _ = call("check-gradients", tiny_bert, "--seed", "4", "--json")
    assert code == 3
    report = json.loads(out)
    assert report["ok"] is False
    assert [found["module"] for found in report["wrong"]] == [
        "bert.encoder.layer.0.attention.output", "bert.encoder.layer.1.attention.output",
    ]  # fmt: skip
    assert error_of(call, "check-gradients", "./nowhere")["problems"][0]["got"] == "no such folder"
