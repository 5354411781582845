"""The strategy that is found: by trials on rows that were held out, within the time, the same recipe as if named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.choice import LayerEvidence
from chainrule.core.recipe import Recipe, Spec, parse_recipe
from chainrule.core.task import Predictions
from chainrule.errors import RecipeError, StoppedError
from chainrule.hpo import auto, race
from chainrule.hpo.race import Candidate, Race
from chainrule.system.progress import Quiet
from chainrule.tasks.prepare import Prepared
from chainrule.testing.data import sentences, write_csv
from chainrule.training.run import prepare_rows

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {"training.threads": 1, "training.precision": "float32", "training.steps": 24}
FULL, HEAD = Spec(name="full"), Spec(name="head")


def prepared_rows(source: Path, model: Path, **settings: Any) -> tuple[Prepared, Recipe]:
    recipe = parse_recipe({"task": "text-classification", "model": str(model), "data": str(source)})
    return prepare_rows(recipe.replace(SETTINGS | settings), str(source), Quiet())


@pytest.fixture(scope="module")
def found(tiny_bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = SETTINGS | {"strategy.options": {"candidates": ["head", "full"]}}
    out = tmp_path_factory.mktemp("auto") / "run"
    return chainrule.train(str(reviews), model=str(tiny_bert), strategy="auto", out=out, settings=settings)


def test_a_run_says_what_was_found_and_how(found: Run) -> None:
    asked, resolved = (chainrule.read_recipe(found.path / name) for name in ("recipe.yaml", "resolved.yaml"))
    assert (asked.strategy.name, asked.choice) == ("auto", None)
    choice = resolved.choice
    assert choice is not None
    best = choice.trials[0]
    assert (choice.by, choice.metric, choice.probe_metric) == ("auto", "accuracy", "accuracy")
    assert resolved.strategy.name in ("head", "full")
    assert resolved.optimizer.learning_rate in {trial.learning_rate for trial in choice.trials}
    assert {trial.strategy for trial in choice.trials} == {"head", "full"}
    assert {trial.learning_rate for trial in choice.trials if trial.strategy == "full"} <= {5e-5, 1.5e-4}
    assert best.round == max(trial.round for trial in choice.trials)
    assert best.score == max(trial.score or 0 for trial in choice.trials if trial.round == best.round)
    assert [layer.layer for layer in choice.layers] == ["embeddings", "layer 0", "layer 1", "head"]
    assert choice.reasons[0].startswith("A linear model on the mean state of ")
    page = (found.path / "report.html").read_text(encoding="utf-8")
    assert "How the strategy was found" in page
    assert "策略是怎么选出来的" in page
    assert found.artifact.manifest.recipe["strategy"]["name"] == resolved.strategy.name


def test_what_was_found_is_trained_as_if_it_had_been_named(found: Run, reviews: Path, tmp_path: Path) -> None:
    again = chainrule.train(str(reviews), recipe=found.path / "resolved.yaml", out=tmp_path / "again")
    assert again.artifact.manifest.weights_sha256 == found.artifact.manifest.weights_sha256
    assert chainrule.reproduce(found, out=tmp_path / "third").same


def test_a_learning_rate_that_teaches_nothing_loses(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, 1e-9), Candidate(FULL, 5e-3)]
    results = Race(recipe, prepared, 600.0, 1e-6).run(candidates, 60, Quiet())
    assert [result.candidate for result in results] == candidates[::-1]
    assert [result.trial.round for result in results] == [1, 1]
    better, worse = results
    assert (better.trial.score or 0) > 0.9 > (worse.trial.score or 0)
    assert (worse.trial.standard_error or 0) > 0
    assert auto._winner(results, candidates, "accuracy")[0] == candidates[1]


def test_of_those_that_are_as_good_the_preferred_one_is_taken(tiny_bert: Path, reviews: Path) -> None:
    """Two that teach nothing differ by no more than chance."""
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, 1e-9), Candidate(HEAD, 1e-9)]
    results = Race(recipe, prepared, 600.0, 1e-6).run(candidates, 20, Quiet())
    assert auto._winner(results, candidates, "accuracy")[0] == candidates[0]
    assert auto._winner(results, candidates[::-1], "accuracy")[0] == candidates[1]


def test_a_trial_that_diverges_is_out(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert, **{"optimizer.max_gradient_norm": None})
    candidates = [Candidate(FULL, 1e30), Candidate(FULL, 1e-4)]
    results = Race(recipe, prepared, 600.0, 1e-6).run(candidates, 20, Quiet())
    assert results[-1].trial.score is None
    assert results[-1].trial.note == "Training has diverged."
    assert auto._winner(results, candidates, "accuracy")[0] == candidates[1]


def test_half_of_them_go_on_and_get_more_steps(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(tmp_path / "many.csv", sentences(1200))
    prepared, recipe = prepared_rows(source, tiny_bert)
    monkeypatch.setattr(race, "FEWEST_STEPS", 2)
    candidates = [Candidate(FULL, rate) for rate in (1e-5, 1e-4, 1e-3, 5e-3)]
    results = Race(recipe, prepared, 1000.0, 20.0).run(candidates, 1000, Quiet())
    rounds = [result.trial.round for result in results]
    assert sorted(rounds) == [1, 1, 1, 1, 2, 2]
    assert rounds == sorted(rounds, reverse=True)
    steps = {result.trial.round: result.trial.steps for result in results}
    assert steps[2] > 1.5 * steps[1]
    assert {result.trial.rows for result in results} == {32 * count for count in steps.values()}


def test_where_time_is_short_fewer_start_and_where_there_is_none_nobody_does(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, 1e-4), Candidate(HEAD, 1e-3), Candidate(FULL, 1e-3), Candidate(HEAD, 1e-2)]
    few = Race(recipe, prepared, 900.0, 3.0)
    assert few.steps(4, 450.0, 1000) < race.FEWEST_STEPS < few.steps(2, 900.0, 1000)
    assert {result.trial.strategy for result in few.run(candidates, 24, Quiet())} == {"full", "head"}
    assert len(few.run(candidates, 24, Quiet())) == 2
    nothing = Race(recipe, prepared, 1.0, 10.0).run(candidates, 1000, Quiet())
    winner, why = auto._winner(nothing, candidates, "accuracy")
    assert (winner, why) == (candidates[0], "there was no time for a race; it did best on other data.")


def test_every_row_of_a_small_set_is_held_out_once(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    small = Race(recipe, prepared, 1.0, 1.0)
    portions, order = small._portions(10), small._order()
    assert sorted(order.tolist()) == list(range(360))
    held = np.concatenate([portion.held_out.targets for portion in portions if portion.held_out.targets is not None])
    assert (held == small.targets[order]).all()
    for portion in portions:
        assert len(portion.train) + len(portion.held_out) == 360
    whole = race._together([_of(order[:90]), _of(order[90:])], order)
    assert whole.values.tolist() == list(range(360))


def _of(values: np.ndarray) -> Any:
    return Predictions(values, values.astype(float), values.astype(float))


def test_minutes_are_shared(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"training.steps": 400, "strategy.options": {"candidates": ["full", "head"], "share": 0.4}}
    run = chainrule.train(
        str(reviews), model=str(tiny_bert), strategy="auto", minutes=0.05, out=tmp_path / "run", settings=settings
    )
    resolved = chainrule.read_recipe(run.path / "resolved.yaml")
    assert resolved.training.minutes is None
    assert resolved.training.steps is not None
    assert resolved.training.steps <= 400


def test_partial_trains_what_lies_above_what_is_known() -> None:
    layers = [
        LayerEvidence(layer=name, probe=probe)
        for name, probe in (("embeddings", 0.5), ("layer 0", 0.79), ("layer 1", 0.8), ("layer 2", 0.7), ("head", None))
    ]
    assert auto._above_what_is_known(Spec(name="partial"), layers).options == {"top": 2}
    assert auto._above_what_is_known(Spec(name="partial"), layers[:4]).options == {"top": 2}
    named = Spec(name="partial", options={"top": 1})
    assert auto._above_what_is_known(named, layers) is named
    assert auto._above_what_is_known(FULL, layers) is FULL
    assert auto._above_what_is_known(Spec(name="partial"), []).options == {}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"strategy.options": {"candidates": ["full"]}, "optimizer.learning_rate": 1e-4},
            "field 'strategy.options.candidates': expected two strategies or more, or a learning rate that is left "
            "open, got full at 0.0001. Name the strategy with --strategy.",
        ),
        (
            {"training.folds": 4},
            "field 'training.folds': expected a strategy that was not chosen by rows that the folds hold out, got auto "
            "with folds. Choose first without --folds; then name with --strategy what was found.",
        ),
        ({"strategy.options": {"candidates": ["ful"]}}, "got 'ful'. Choose one of the names"),
        ({"strategy.options": {"candidate": ["full"]}}, "expected one of the keys candidates, share"),
        ({"strategy.options": {"share": 1.5}}, "field 'strategy.options.share': expected less than 1, got 1.5"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    settings: dict[str, Any], problem: str, tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        chainrule.train(str(reviews), model=str(tiny_bert), strategy="auto", out=tmp_path / "run", settings=settings)
    assert problem in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_candidate_that_the_task_does_not_go_with_is_refused(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    settings = {"strategy.options": {"candidates": ["head", "lora"]}}
    with pytest.raises(RecipeError, match="'head' does not go together with text-generation"):
        chainrule.train(str(reviews), task="text-generation", strategy="auto", out=tmp_path / "r", settings=settings)


def test_find_lr_wants_one_strategy(reviews: Path) -> None:
    with pytest.raises(RecipeError, match="find-lr works on one strategy") as caught:
        chainrule.find_learning_rate(str(reviews), strategy="auto")
    assert caught.value.problems[0].todo.startswith("Name one with --strategy")


def test_ctrl_c_while_choosing_leaves_nothing(
    tiny_bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*arguments: Any) -> Any:
        raise StoppedError("Stopped by Ctrl-C after step 1.", [], 130)

    monkeypatch.setattr(race, "train", pressed)
    with pytest.raises(StoppedError, match="Stopped while the strategy was chosen") as caught:
        chainrule.train(str(reviews), model=str(tiny_bert), strategy="auto", out=tmp_path / "run", settings=SETTINGS)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "run").exists()


def test_it_is_shown_with_the_others() -> None:
    rows = chainrule.show("strategies")["strategies"]
    assert rows[-1]["name"] == "auto"
    assert rows[-1]["options"] == {"candidates": [], "share": 0.25}
    assert math.prod(reason is None for reason in rows[-1]["tasks"].values())


@pytest.mark.parametrize(
    ("task", "rows", "names"),
    [
        ("text-classification", 64, ["contrastive", "gradual", "full"]),
        ("text-classification", 5000, ["full", "gradual", "partial"]),
        ("regression", 64, ["gradual", "full"]),
        ("text-generation", 800, ["lora", "full"]),
    ],
)
def test_what_races_where_nothing_is_named(task: str, rows: int, names: list[str]) -> None:
    recipe = parse_recipe({"task": task, "model": "minilm"})
    assert [spec.name for spec in auto._usual(recipe, rows)] == names
