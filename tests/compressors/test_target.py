"""Targets: what is asked for, what is kept on the way, what is put in place, and what is out of reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Artifact, Run
from chainrule.core.target import Candidate, TargetReport, frontier_of, parse_target
from chainrule.errors import ModelError, OutputError, RecipeError
from chainrule.evaluation.target_page import render_target
from chainrule.testing.data import write_csv
from chainrule.testing.runs import short_run

pytestmark = pytest.mark.unit


def test_what_a_target_says() -> None:
    target = parse_target("Latency 4x, size 25MB, loss 1pt")
    assert [(wish.quantity, wish.value, wish.unit) for wish in target.wishes] == [
        ("latency", 4.0, "x"),
        ("size", 25.0, "mb"),
    ]
    assert (target.loss, target.worst) == (0.01, 0.02)
    assert target.times == 4
    assert target.is_of_size
    assert parse_target("latency 5 ms, worst 3 points").worst == pytest.approx(0.03)
    for wrong in ("", "latency 4", "fast", "loss 1pt", "latency 4x loss 1pt", "latency 0x", "speed 5ms", "loss 2x"):
        with pytest.raises(RecipeError, match="The target cannot be read"):
            parse_target(wrong)


def test_what_is_missing() -> None:
    found = Candidate(name="a", single=2.0, many=5.0, smaller=1.0, milliseconds=6.0, megabytes=50.0)
    for text, missing in (("latency 4x", 2.0), ("speed 4x", 0.8), ("size 25MB", 2.0), ("latency 3ms", 2.0)):
        assert parse_target(text).missing(found) == pytest.approx(missing)
    assert parse_target("speed 4x, size 3x").missing(found) == 3.0


CANDIDATES = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=9).map(
    lambda numbers: [
        Candidate(name=str(place), difference=-quality, single=speed, megabytes=size)
        for place, (quality, speed, size) in enumerate(numbers)
    ]
)


@given(CANDIDATES)
def test_the_frontier(candidates: list[Candidate]) -> None:
    """What none beats stays, and whatever goes is beaten by something that stays."""

    def beats(one: Candidate, other: Candidate) -> bool:
        pairs = [
            (one.quality, other.quality),
            (one.single, other.single),
            (-one.megabytes, -other.megabytes),
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    kept = [found for found in candidates if found.name in frontier_of(candidates)]
    assert kept
    for found in candidates:
        if found in kept:
            assert not any(beats(other, found) for other in candidates)
        else:
            assert any(beats(other, found) for other in kept)


@pytest.fixture(scope="module")
def laconic(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on rows of few words, so that most of the vocabulary can go."""
    folder = tmp_path_factory.mktemp("laconic")
    rows = [
        {"text": f"{word} {thing} {number}", "label": label}
        for number in range(40)
        for word, label in (("good", "positive"), ("bad", "negative"))
        for thing in ("film", "room")
    ]
    return short_run("text-classification", folder / "x", rows=write_csv(folder / "rows.csv", rows), training__steps=30)


def test_a_target_that_is_reached(laconic: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = chainrule.reach_target(laconic, "size 1.01x, loss 10pt, worst 50pt", out)
    assert report.reached
    assert [found.name for found in report.candidates] == ["as it is", "vocabulary"]
    assert report.chosen == "vocabulary"
    assert report.test is not None
    assert report.test.data == "rows.csv, test"
    artifact = Artifact.read(out)
    assert artifact.path == out / "artifact"
    steps = [step.step for step in artifact.manifest.lineage]
    assert steps == ["compress --to vocabulary", 'compress --target "size 1.01x, loss 10pt, worst 50pt"']
    assert AutoModelForSequenceClassification.from_pretrained(artifact.path).config.num_labels == 2
    found = report.named("vocabulary")
    assert found is not None
    assert found.memory_mb is not None
    assert found.memory_mb > 100
    assert found.p95 >= found.milliseconds > 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "vocabulary reaches the target" in page
    assert "在测试集上达到目标" in page
    made = out / "candidates" / "vocabulary" / "chainrule.json"
    before = made.stat().st_mtime_ns
    (out / "report.json").unlink()
    again = chainrule.reach_target(laconic, "size 1.01x, loss 10pt, worst 50pt", out)  # goes on, makes nothing anew
    assert made.stat().st_mtime_ns == before
    assert again.candidates == report.candidates
    with pytest.raises(OutputError):
        chainrule.reach_target(laconic, "size 2x", out)


@pytest.mark.slow
def test_the_whole_ladder(tmp_path: Path) -> None:
    """Everything is tried, each step stays only if it holds, and nothing is enough."""
    run = short_run("text-classification", tmp_path / "x", training__steps=60)
    options = {"trial_steps": 2, "settings": {"training.threads": 1, "training.precision": "float32"}}
    report = chainrule.reach_target(run, "size 90x, loss 20pt, worst 60pt", tmp_path / "out", options=options)
    names = [found.name for found in report.candidates]
    assert names[:4] == ["as it is", "vocabulary", "int8", "prune 30%"]
    assert "student of 1 layers" in names
    assert any("+ int8" in name for name in names)
    assert "int8 + int8" not in names
    assert not report.reached
    assert report.artifact is None
    nearest = report.named(report.nearest)
    assert nearest is not None
    assert nearest.holds
    for found in report.candidates[1:]:
        parent = report.named(found.parent)
        assert parent is not None
        assert parent.holds
        assert (found.folder is None) == bool(found.note)
        if found.folder is not None:
            assert Artifact.read(tmp_path / "out" / found.folder).manifest.lineage


def test_a_target_out_of_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An LSTM can neither be pruned nor quantised: nothing is tried for long, and the nearest is the model itself."""
    run = short_run("text-classification", tmp_path / "x", model="lstm")
    command = ["compress", str(run.path), "--target", "speed 50x", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--yes"])
    assert stop.value.code == 3
    shown = capsys.readouterr().out
    assert "int8: not made, an LSTM over packed rows, which torch.export does not take." in shown
    assert "Out of reach. Nearest within the loss: as it is, to be 50.00 times better." in shown
    assert not (tmp_path / "out" / "artifact").exists()
    with pytest.raises(SystemExit) as stop:
        main([*command, "--yes", "--json"])
    assert stop.value.code == 3
    told = TargetReport.model_validate(json.loads(capsys.readouterr().out))
    assert told.nearest == "as it is"
    assert "is out of reach here" in render_target(told, "out")


def test_the_plan_comes_first(laconic: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(laconic.path), "--target", "latency 4x, size 2x", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--json"])
    assert stop.value.code == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    names = [step["name"] for step in steps]
    assert names == [
        *(f"prune {share}%" for share in (50, 60, 70, 80, 30)),
        "student of 1 layers",
        "vocabulary",
        "int8",
    ]
    assert all(step["seconds"] > 0 for step in steps[:6])
    with pytest.raises(SystemExit):
        main(command)
    assert "Nothing was made." in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        main([*command[:3], "cheap", *command[4:]])
    assert stop.value.code == 2
    chat = short_run("text-generation", tmp_path / "chat")
    with pytest.raises(ModelError, match="There is no target mode for this model"):
        chainrule.plan_target(chat, "latency 2x")


def test_a_page_of_what_loses_on_test(laconic: Run) -> None:
    made: dict[str, Any] = {"folder": "candidates/a", "parent": "as it is", "milliseconds": 2.0, "megabytes": 3.0}
    candidates = (
        Candidate(name="as it is", milliseconds=5.0, megabytes=9.0, holds=True),
        Candidate(name="prune 50%", difference=-0.002, low=-0.01, high=0.01, single=2.5, holds=True, **made),
    )
    report = TargetReport(
        target=parse_target("latency 2x"),
        metric="accuracy",
        rows=40,
        candidates=candidates,
        frontier=frontier_of(candidates),
        chosen="prune 50%",
        nearest="prune 50%",
        cheapest=None,
        test=None,
        speed=None,
        reached=False,
        artifact=None,
        seconds=1.0,
    )
    page = render_target(report, "out")
    assert "but loses too much on the test rows" in page
    assert "−0.2" in page
    assert page.count("<circle") >= 3
