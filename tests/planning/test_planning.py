"""What is planned: it trains as it is, says why, keeps what was set, and says no where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import chainrule
from chainrule.cli import main
from chainrule.core.plan import PlanReport
from chainrule.core.prediction import Prediction
from chainrule.core.recipe import parse_recipe, read_recipe
from chainrule.errors import OutputError, RecipeError
from chainrule.planning.cost import Pace, operations, seconds_of, seen_pace
from chainrule.planning.limits import Limits, in_time
from chainrule.planning.profile import language_of, scripts_of
from chainrule.planning.rules import RULES, apply, reason_of
from chainrule.testing.data import write_csv
from chainrule.training.measure import Load, Measured, Stage, Work

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {"training.threads": 1, "training.precision": "float32"}
FACTS = {
    "goal": "quality",
    "rows": 5000,
    "labels": 4,
    "head": "classifier",
    "writes": False,
    "pretrained": True,
    "parameters": 20_000_000,
    "epochs": 3,
    "strategy": "full",
}


@pytest.fixture(scope="module")
def planned(tiny_bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlanReport, Path]:
    out = tmp_path_factory.mktemp("plan") / "recipe.yaml"
    return chainrule.plan(str(reviews), models=[str(tiny_bert)], out=out, settings=SETTINGS), out


def test_a_plan_says_what_it_recommends_and_why(planned: tuple[PlanReport, Path], tiny_bert: Path) -> None:
    report, _ = planned
    assert report.go
    assert report.predicted["seconds"] > 0
    assert report.predicted["peak_memory_mb"] > 100
    assert report.predicted["measured_steps"] > 0
    told = report.as_dict()
    assert {"predicted", "recipe", "reasons", "go"} <= told.keys()
    assert {"seconds", "peak_memory_mb"} <= told["predicted"].keys()
    keys = {reason.key for reason in report.reasons}
    assert {"model", "strategy", "training.epochs", "training.batch_size", "optimizer.learning_rate"} <= keys
    assert {"regularisers", "model.max_length"} <= keys
    assert [option.note for option in report.options].count("recommended") == 1
    assert report.data["rows"] == {"train": 320, "validation": 40, "test": 40}
    assert report.data["scripts"] == {"Latin": 1.0}
    model = report.models[0]
    assert (model["name"], model["place"], model["layers"]) == (str(tiny_bert), "folder", 2)
    assert model["fit"]["unknown"] < 0.1
    assert report.machine["gigaflops"]["float32"] > 0


def test_the_written_recipe_is_complete_commented_and_trains(planned: tuple[PlanReport, Path], tmp_path: Path) -> None:
    report, out = planned
    text = out.read_text(encoding="utf-8")
    for reason in report.reasons:
        assert reason.text.split()[0] in text
        assert reason.page in text
    recipe = read_recipe(out)
    assert yaml.safe_load(text).keys() == parse_recipe({"task": "regression", "model": "x"}).model_dump().keys()
    assert recipe.prediction == Prediction.model_validate(report.predicted)
    run = chainrule.train(recipe=out, out=tmp_path / "run")
    assert run.summary["predicted"] == report.predicted
    assert run.summary["steps"] == report.predicted["steps"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "training time, planned" in page
    assert "训练用时（计划）" in page


def test_a_changed_recipe_loses_what_was_predicted_of_it(planned: tuple[PlanReport, Path], tmp_path: Path) -> None:
    run = chainrule.train(recipe=planned[1], out=tmp_path / "run", epochs=1)
    assert "predicted" not in run.summary
    assert read_recipe(run.path / "resolved.yaml").prediction is None


def test_what_was_set_is_kept(tiny_bert: Path, reviews: Path) -> None:
    settings = SETTINGS | {"training.batch_size": 7, "optimizer.learning_rate": 2e-4, "model.max_length": 24}
    report = chainrule.plan(str(reviews), models=[str(tiny_bert)], strategy="head", epochs=2, settings=settings)
    recipe = parse_recipe(report.recipe)
    assert (recipe.strategy.name, recipe.training.epochs, recipe.training.batch_size) == ("head", 2, 7)
    assert (recipe.optimizer.learning_rate, recipe.model.max_length) == (2e-4, 24)
    asked = {reason.key for reason in report.reasons if reason.evidence == "asked for"}
    assert asked >= {
        "strategy",
        "training.epochs",
        "training.batch_size",
        "optimizer.learning_rate",
        "model.max_length",
    }
    assert report.predicted["steps"] == 2 * -(-320 // 7)


def test_no_go_names_what_would_do(
    tiny_bert: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recipe.yaml"
    words = ["plan", str(reviews), "--model", str(tiny_bert), "--memory", "0.05", "--out", str(out), "--json"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--set", "training.threads=1", "--set", "training.precision=float32"])
    assert stop.value.code == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["go"], told["recipe"]) == (False, None)
    assert told["nearest"]["peak_memory_mb"] > 51.2
    assert "more memory than the 51 MB asked for (--memory " in told["verdict"]
    assert not out.exists()


def test_rows_that_a_model_cannot_read_get_one_that_is_made_from_them(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [
        (f"这部电影很{word}，{place}", label)
        for word, label in (("好", "1"), ("差", "0"))
        for place in "天地人山水火土木金日月星" * 8
    ]
    table = [{"text": text, "label": label} for text, label in rows]
    report = chainrule.plan(str(write_csv(tmp_path / "zh.csv", table)), models=[str(tiny_bert)], settings=SETTINGS)
    assert parse_recipe(report.recipe).model.name == "lstm"
    assert report.reasons[0].text.endswith(f"of the tokens are unknown to {tiny_bert}.")
    assert (report.data["language"], next(iter(report.data["scripts"]))) == ("Chinese", "Han")


def test_what_cannot_be_planned_for(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        chainrule.plan(str(reviews), models=[str(tiny_bert)], goal="fame", limits=(-1, 0))  # type: ignore[arg-type]
    assert str(error.value) == (
        "This cannot be planned for.\n"
        "  - field 'goal': expected one of quality, speed, size, got 'fame'. Choose one of them with --goal.\n"
        "  - field 'minutes': expected a number above 0, got -1. Give --minutes a number above 0, or leave it out.\n"
        "  - field 'memory': expected a number above 0, got 0. Give --memory a number above 0, or leave it out."
    )
    with pytest.raises(RecipeError, match=r"plan works on one training\."):
        chainrule.plan(str(reviews), models=[str(tiny_bert)], folds=3)
    with pytest.raises(RecipeError, match=r"plan works on one strategy\."):
        chainrule.plan(str(reviews), models=[str(tiny_bert)], strategy="auto")
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        chainrule.plan(str(reviews), models=[str(tiny_bert)], out=there)
    assert there.read_text() == "mine"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.key}={rule.value}")
def test_every_rule_leads_to_a_page_and_says_what_it_goes_by(rule: Any, repository_root: Path) -> None:
    assert (repository_root / rule.page).is_file()
    assert rule.evidence
    assert set(rule.when) <= FACTS.keys()
    assert reason_of(rule, FACTS)
    if rule.evidence.startswith("LOG.md, "):
        date, question = rule.evidence.removeprefix("LOG.md, ").split(", ", maxsplit=1)
        assert f"## {date} · {question.strip(chr(34))}" in (repository_root / "LOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({}, "full"),
        ({"rows": 64}, "contrastive"),
        ({"rows": 64, "labels": 77}, "full"),
        ({"goal": "speed"}, "gradual"),
        ({"goal": "size"}, "lora"),
        ({"writes": True, "head": "language-model"}, "lora"),
        ({"pretrained": False, "goal": "speed"}, "full"),
    ],
)
def test_the_first_rule_that_holds_is_taken(facts: dict[str, Any], first: str) -> None:
    rule = apply("strategy", FACTS | facts)
    assert rule is not None
    assert rule.value[0] == first


def made_up(seconds: Pace, *, stages: tuple[Stage, ...], frozen: int = 0) -> Measured:
    """What would be seen on a machine of that pace: 18 steps, and a training of 100."""
    work = Work(parameters=10**6, layers=4, hidden=64, weights=400_000, frozen=frozen, trained=10**6, stages=stages)
    draw = np.random.default_rng(0)

    def load(count: int) -> Load:
        tokens, widths = draw.integers(200, 4000, count).astype(float), draw.integers(8, 128, count)
        return Load(tokens, tokens * widths, np.arange(count) / count)

    whole, made = load(100), load(18)
    bytes_moved = 28.0 * 10**6
    took = seconds.step + seconds.byte * bytes_moved + seconds.operation * operations(work, made)
    return Measured(work, whole, made, took, 6, None, None, 0.0, 500.0, 0.0, 0.0, 4096, "float32")


WHOLE = (Stage(0.0, 10**6, 400_000, 4),)


def test_a_pace_that_was_seen_is_found_again() -> None:
    true = Pace(0.0, 1e-9, 1e-10)
    measured = made_up(true, stages=WHOLE)
    expected = (28e-3 + 1e-10 * operations(measured.work, measured.whole)).sum()
    assert seconds_of(measured, seen_pace(measured, Pace(0, 1, 1))) == pytest.approx(expected, rel=1e-6)


def test_what_is_frozen_costs_less() -> None:
    load = Load(np.full(4, 1000.0), np.full(4, 64_000.0), np.arange(4) / 4)
    whole = made_up(Pace(0, 0, 1), stages=WHOLE).work
    head = made_up(Pace(0, 0, 1), stages=(Stage(0.0, 100, 0, 0),)).work
    cached = made_up(Pace(0, 0, 1), stages=(Stage(0.0, 100, 0, 0),), frozen=4).work
    later = made_up(Pace(0, 0, 1), stages=(Stage(0.0, 100, 0, 0), Stage(0.5, 10**6, 400_000, 4))).work
    forward = 2 * 1000 * 400_000 + 4 * 64_000 * 64 * 4
    assert operations(head, load).tolist() == [forward] * 4
    assert operations(whole, load).tolist() == [3 * forward] * 4
    assert operations(cached, load).tolist() == [0] * 4
    assert operations(later, load).tolist() == [forward] * 2 + [3 * forward] * 2


def test_epochs_become_fewer_until_there_is_time() -> None:
    recipe = parse_recipe({"task": "regression", "model": "x", "training": {"epochs": 5}})
    measured, pace = made_up(Pace(1.0, 0, 0), stages=WHOLE), Pace(1.0, 0.0, 0.0)
    kept, prediction = in_time(recipe, measured, pace, Limits(), 0)
    assert (kept, prediction.seconds, prediction.steps) == (recipe, 100.0, 100)
    fewer, prediction = in_time(recipe, measured, pace, Limits(minutes=1.15), 0)
    assert (fewer.training.epochs, prediction.seconds, prediction.steps) == (3.0, 60.0, 60)
    least, prediction = in_time(recipe, measured, pace, Limits(minutes=0.1), 0)
    assert (least.training.epochs, prediction.steps) == (1.0, 20)
    assert Limits(minutes=0.1).excess(prediction) > 1
    verdict = Limits(minutes=0.1, memory_mb=900).verdict(prediction, ("x", "full"), fits=False)
    assert verdict == (
        "No go: the nearest, x with full, takes about 20 s of training and 500 MB: "
        "more time than 0.1 minutes (--minutes 0.4 would do)."
    )


def test_scripts_and_languages() -> None:
    german = ["Das ist nicht der Hund von dem Mann, und die Katze ist mit dem Kind im Haus."] * 3
    assert scripts_of(["Привет, мир", "abc"]) == {"Cyrillic": 0.75, "Latin": 0.25}
    assert language_of(german, scripts_of(german)) == "German"
    assert language_of(["qwrt zxcv bnm"], {"Latin": 1.0}) is None
    assert language_of(["これは本です"], {"Hiragana": 0.6, "Han": 0.4}) == "Japanese"
