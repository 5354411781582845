"""Merges: each against its formula in float64, and of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.core.recipe import Spec
from chainrule.core.shelf import take
from chainrule.errors import GateError, ModelError, RecipeError
from chainrule.merging import MERGES
from chainrule.merging.base import Weights
from chainrule.merging.slerp import between
from chainrule.merging.task_vectors import agreed, trimmed
from chainrule.testing.models import tiny_model
from chainrule.testing.runs import short_run

pytestmark = pytest.mark.unit
GENERATOR = torch.Generator().manual_seed(1)


def _weights(count: int = 1) -> list[Weights]:
    def drawn() -> dict[str, torch.Tensor]:
        made = {name: torch.randn(*shape, generator=GENERATOR) for name, shape in (("a", (3, 4)), ("b", (5,)))}
        return made | {"places": torch.arange(3)}

    return [drawn() for _ in range(count)]


def _merge(
    name: str, members: list[Weights], base: Weights | None = None, score: Any = None, **options: Any
) -> Weights:
    made: Weights = take(MERGES, Spec(name=name, options=options), "method")().merge(members, base, score)
    return made


def test_averages() -> None:
    members = _weights(3)
    merged = _merge("average", members)
    torch.testing.assert_close(merged["a"], sum(member["a"] for member in members) / 3)
    assert merged["places"].tolist() == [0, 1, 2]
    weighted = _merge("average", members, weights=[1.0, 0.0, 3.0])
    torch.testing.assert_close(weighted["b"], 0.25 * members[0]["b"] + 0.75 * members[2]["b"])


def test_the_greedy_soup_keeps_what_helps() -> None:
    """Scores by distance from a goal: the far member stays out."""
    goal = torch.zeros(3, 4)
    near, other, far = ({"a": goal + shift} for shift in (0.5, -0.6, 50.0))

    def score(weights: Weights) -> float:
        return -float(weights["a"].abs().mean())

    merged = _merge("greedy", [far, other, near], score=score)
    torch.testing.assert_close(merged["a"], (near["a"] + other["a"]) / 2)


@given(t=st.floats(0, 1), angle=st.floats(0.1, 3.0), length=st.floats(0.5, 4))
def test_slerp_goes_along_the_arc(t: float, angle: float, length: float) -> None:
    first = torch.tensor([length, 0.0], dtype=torch.float64)
    second = length * torch.tensor(
        [torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))], dtype=torch.float64
    )
    found = between(first, second, t)
    assert float(found.norm()) == pytest.approx(length, rel=1e-6)
    assert float(torch.atan2(found[1], found[0])) == pytest.approx(t * angle, abs=1e-6)


def test_slerp_of_parallel_and_empty_tensors_is_a_line() -> None:
    one, zero = torch.ones(4), torch.zeros(4)
    torch.testing.assert_close(between(one, 3 * one, 0.5), 2 * one)
    torch.testing.assert_close(between(zero, one, 0.25), 0.25 * one)


def test_task_arithmetic() -> None:
    (base, *members) = _weights(3)
    merged = _merge("task-arithmetic", members, base, scales=[0.4])
    torch.testing.assert_close(merged["a"], base["a"] + 0.4 * sum(m["a"] - base["a"] for m in members))
    less = _merge("task-arithmetic", members, base, scales=[1.0, -1.0])
    torch.testing.assert_close(less["b"], base["b"] + members[0]["b"] - members[1]["b"], rtol=1e-5, atol=1e-6)


def test_what_the_base_lacks_is_averaged() -> None:
    (base, *members) = _weights(3)
    base = {"a": base["a"]}
    merged = _merge("task-arithmetic", members, base, scales=[0.4])
    torch.testing.assert_close(merged["b"], (members[0]["b"] + members[1]["b"]) / 2)


def test_ties() -> None:
    """The example: trimmed to the larger half, the sign by the sum, the mean of those that have it."""
    added = torch.tensor([[3.0, -1.0, 0.1, 2.0], [-1.0, -2.0, 4.0, 0.2]], dtype=torch.float64)
    kept = trimmed(added, 0.5)
    assert kept.tolist() == [[3.0, 0.0, 0.0, 2.0], [0.0, -2.0, 4.0, 0.0]]
    assert agreed(kept).tolist() == [3.0, -2.0, 4.0, 2.0]
    assert agreed(torch.tensor([[3.0, 1.0], [-1.0, 2.0]])).tolist() == [3.0, 1.5]
    base = {"a": torch.zeros(4)}
    merged = _merge("ties", [{"a": row.float()} for row in added], base, density=0.5, scale=0.5)
    assert merged["a"].tolist() == [1.5, -1.0, 2.0, 1.0]


def test_dare_keeps_the_mean() -> None:
    base, member = {"a": torch.zeros(400, 50)}, {"a": torch.ones(400, 50)}
    merged = _merge("dare", [member, member], base, drop=0.8)["a"]
    assert float(merged.mean()) == pytest.approx(1.0, abs=0.05)
    assert 0.6 < float((merged == 0).float().mean()) < 0.68  # 0.8 · 0.8
    again = _merge("dare", [member, member], base, drop=0.8)["a"]
    assert torch.equal(merged, again)
    assert not torch.equal(merged, _merge("dare", [member, member], base, drop=0.8, seed=1)["a"])
    whole = _merge("dare", [member, member], base, drop=0.0)["a"]
    torch.testing.assert_close(whole, member["a"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three seeds of one recipe."""
    folder = tmp_path_factory.mktemp("soup")
    first = short_run("text-classification", folder / "x", training__steps=40)
    model, rows = str(first.path.parent / "model"), first.path.parent / "rows" / "rows.csv"
    others = [
        short_run("text-classification", folder / str(seed), rows=rows, model=model, seed=seed, training__steps=40)
        for seed in (1, 2)
    ]
    return [first, *others]


@pytest.mark.parametrize("method", [name for name in MERGES if name != "ensemble"])
def test_runs_become_one(method: str, runs: list[Run], tmp_path: Path) -> None:
    members = runs[:2] if method == "slerp" else runs
    limits: Any = {"loss": 100.0, "worst": 100.0}
    artifact, step = chainrule.merge(members, tmp_path / "out", method=method, **limits)
    assert step.step == f"merge --method {method}"
    assert step.parity.before is not None
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path)
    if method == "average":
        parts = [AutoModelForSequenceClassification.from_pretrained(run.path / "artifact") for run in members]
        mean = torch.stack([part.classifier.weight for part in parts]).mean(0)
        torch.testing.assert_close(model.classifier.weight, mean)
        assert model.config.id2label == {0: "negative", 1: "positive"}
    assert chainrule.predict(artifact, text="a good film")
    assert chainrule.evaluate(artifact, str(runs[0].path.parent / "rows" / "rows.csv"), split="test").rows == 24


def test_adapters_are_merged_into_their_model_first(runs: list[Run], tmp_path: Path) -> None:
    model, rows = str(runs[0].path.parent / "model"), runs[0].path.parent / "rows" / "rows.csv"
    kept: Any = {"name": "lora", "options": {"merge": False}}
    lora = short_run("text-classification", tmp_path / "lora", rows=rows, model=model, strategy=kept)
    limits: Any = {"loss": 100.0, "worst": 100.0}
    artifact, _ = chainrule.merge([runs[0], lora], tmp_path / "out", **limits)
    assert artifact.manifest.loads_in == ("transformers",)


def test_what_is_worse_than_the_best_is_not_put_in_place(runs: list[Run], tmp_path: Path) -> None:
    far: Any = {"scales": [-5.0]}
    with pytest.raises(GateError, match="merge --method task-arithmetic gave another model; it was not put in place"):
        chainrule.merge(runs, tmp_path / "out", method="task-arithmetic", options=far)
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_refused(runs: list[Run], tmp_path: Path) -> None:
    other = short_run("text-classification", tmp_path / "other", model=_another(tmp_path))
    with pytest.raises(ModelError, match="These models cannot become one") as told:
        chainrule.merge([runs[0], other], tmp_path / "out")
    assert [problem.where.field for problem in told.value.problems] == ["base_sha256"]
    with pytest.raises(RecipeError, match="There is nothing to merge"):
        chainrule.merge(runs[:1], tmp_path / "out")
    with pytest.raises(RecipeError) as wrong:
        chainrule.merge(runs, tmp_path / "out", method="slerp")
    assert (wrong.value.problems[0].expected, wrong.value.problems[0].got) == ("two models", "3")
    with pytest.raises(RecipeError):
        chainrule.merge(runs, tmp_path / "out", options={"weights": [1.0]})
    with pytest.raises(RecipeError, match="There is no method 'median'"):
        chainrule.merge(runs, tmp_path / "out", method="median")


def _another(folder: Path) -> str:
    return str(tiny_model(folder / "another", seed=9))


def test_the_command(runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [str(run.path) for run in runs[:2]]
    command = ["merge", *named, "--out", str(tmp_path / "out"), "--loss", "100", "--worst", "100", "--json"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--method", "slerp", "--set", "t=0.2"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["runtime"] == "torch"
