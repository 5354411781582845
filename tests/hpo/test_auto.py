"""The strategy that is found: by trials on rows that were held out, within the time, the same recipe as if named."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.choice import LayerEvidence, Trial
from chainrule.core.recipe import Recipe, Spec, parse_recipe
from chainrule.core.task import Predictions
from chainrule.data.encode import Encoded
from chainrule.errors import RecipeError, StoppedError, Where
from chainrule.hpo import auto, race, short
from chainrule.hpo.race import Candidate, Race
from chainrule.hpo.short import FEWEST_STEPS, Pace
from chainrule.system.progress import Bar, Quiet
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
    results = Race(recipe, prepared, 600.0, Pace(0.0, 1e-6)).run(candidates, 60, Quiet())
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
    results = Race(recipe, prepared, 600.0, Pace(0.0, 1e-6)).run(candidates, 20, Quiet())
    assert auto._winner(results, candidates, "accuracy")[0] == candidates[0]
    assert auto._winner(results, candidates[::-1], "accuracy")[0] == candidates[1]


def test_a_trial_that_diverges_is_out(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert, **{"optimizer.max_gradient_norm": None})
    candidates = [Candidate(FULL, 1e30), Candidate(FULL, 1e-4)]
    results = Race(recipe, prepared, 600.0, Pace(0.0, 1e-6)).run(candidates, 20, Quiet())
    assert results[-1].trial.score is None
    assert re.match(r"(loss|a loss of) ", results[-1].trial.note)
    assert auto._winner(results, candidates, "accuracy")[0] == candidates[1]


def test_half_of_them_go_on_and_get_more_steps(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(tmp_path / "many.csv", sentences(1200))
    prepared, recipe = prepared_rows(source, tiny_bert)
    monkeypatch.setattr(race, "FEWEST_STEPS", 2)
    candidates = [Candidate(FULL, rate) for rate in (1e-5, 1e-4, 1e-3, 5e-3)]
    results = Race(recipe, prepared, 1000.0, Pace(0.0, 20.0)).run(candidates, 1000, Quiet())
    rounds = [result.trial.round for result in results]
    assert sorted(rounds) == [1, 1, 1, 1, 2, 2]
    assert rounds == sorted(rounds, reverse=True)
    steps = {result.trial.round: result.trial.steps for result in results}
    assert steps[2] > 1.5 * steps[1]
    assert {result.trial.rows for result in results} == {32 * count for count in steps.values()}


def test_where_time_is_short_fewer_start_and_where_there_is_none_nobody_does(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, 1e-4), Candidate(HEAD, 1e-3), Candidate(FULL, 1e-3), Candidate(HEAD, 1e-2)]
    few = Race(recipe, prepared, 900.0, Pace(0.0, 5.0))
    assert few.steps(2, 450.0, 1000) < FEWEST_STEPS < few.steps(1, 900.0, 1000)
    tried = [result.candidate for result in few.run(candidates, 24, Quiet())]
    assert {candidates.index(candidate) for candidate in tried} == {0, 1, 3}  # heads on few rows cost nothing
    nothing = Race(recipe, prepared, 1.0, Pace(0.0, 10.0)).run(candidates, 1000, Quiet())
    winner, why = auto._winner(nothing, candidates, "accuracy")
    assert (winner, why) == (candidates[0], "there was no time for a race; it comes first in the order of preference.")


def test_a_head_is_trained_to_its_end_once_where_that_is_soon_done(
    tiny_bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On few rows always; on many where the frozen layers' pass over them takes little of the time."""
    monkeypatch.setattr(race, "FEWEST_STEPS", 2)
    candidates = [Candidate(FULL, 1e-4), Candidate(FULL, 1e-5), Candidate(FULL, 1e-6), Candidate(HEAD, 1e-3)]
    many = write_csv(tmp_path / "many.csv", sentences(1200))
    for source, seconds, whole in ((reviews, 900.0, True), (many, 700.0, False), (many, 2400.0, True)):
        prepared, recipe = prepared_rows(source, tiny_bert)
        results = Race(recipe, prepared, seconds, Pace(0.0, 20.0)).run(candidates, 160, Quiet())
        last = max(result.trial.round for result in results)
        assert last >= 2
        heads = [result for result in results if result.candidate == candidates[3]]
        others = [result.trial.steps for result in results if result not in heads]
        assert all(2 <= steps < 160 for steps in others)
        if whole:
            assert [head.trial.round for head in heads] == list(range(last, 0, -1))
            assert {head.trial.steps for head in heads} == {160}
            assert len({head.trial.seconds for head in heads}) == 1  # trained once
        else:
            assert {head.trial.steps for head in heads} < set(others)


def test_heads_alone_race_like_others(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(HEAD, 1e-1), Candidate(HEAD, 1e-9)]
    results = Race(recipe, prepared, 900.0, Pace(0.0, 0.1)).run(candidates, 24, Quiet())
    assert auto._winner(results, candidates, "accuracy")[0] == candidates[0]


def result_of(candidate: Candidate, score: float, error: float, steps: int = 10) -> race.Result:
    trial = Trial(
        strategy=candidate.strategy.name,
        learning_rate=candidate.learning_rate,
        round=1,
        steps=steps,
        rows=steps,
        score=score,
        seconds=1,
        standard_error=error,
    )
    return race.Result(candidate, trial, Predictions(np.zeros(1), np.zeros(1)))


def test_what_was_trained_to_its_end_has_to_be_better_by_two_standard_errors() -> None:
    """Beside what has made less than a quarter of its steps, which will grow; beside more of them, by one."""
    full, head = Candidate(FULL, 1e-4), Candidate(HEAD, 1e-3)
    for steps, error, winner in ((20, 0.06, full), (20, 0.04, head), (60, 0.06, head), (60, 0.11, full)):
        results = [result_of(head, 0.8, 0.0, 100), result_of(full, 0.7, error, steps)]
        found, why = auto._winner(results, [full, head], "accuracy")
        assert found == winner
        if winner is full:
            within = "two standard errors" if steps == 20 else "a standard error"
            assert why.startswith(f"accuracy 0.7000 after {steps} steps on {steps} rows, within {within} of the best, ")
            assert why.endswith("head at 0.001 with 0.8000 after 100.")


def test_of_those_as_good_as_the_best_the_preferred_go_on(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, rate) for rate in (1e-3, 1e-4, 1e-5, 1e-6)]
    scores = ((2, 0.9, 0.0), (3, 0.88, 0.01), (0, 0.86, 0.05), (1, 0.5, 0.1))
    ranked = [result_of(candidates[place], score, error) for place, score, error in scores]
    stay = Race(recipe, prepared, 900.0, Pace(0.0, 0.1))._stay(ranked, candidates)
    assert stay == [candidates[0], candidates[2]]


def test_what_costs_nothing_takes_no_others_place(tiny_bert: Path, reviews: Path) -> None:
    """Half of the others go on, the first of two here, however well the heads do; and it goes on beside the heads."""
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, 1e-9), Candidate(FULL, 1e-8), Candidate(HEAD, 1e-1), Candidate(HEAD, 5e-2)]
    results = Race(recipe, prepared, 900.0, Pace(0.0, 2.0)).run(candidates, 100, Quiet())
    last = max(result.trial.round for result in results)
    assert last >= 2
    places = [(result.trial.round, candidates.index(result.candidate)) for result in results]
    assert {place for number, place in places if number == 1} == {0, 1, 2, 3}
    assert {place for number, place in places if number == last} in ({0, 2, 3}, {1, 2, 3})


def test_every_row_of_a_small_set_is_held_out_once_and_its_twins_with_it(tiny_bert: Path, tmp_path: Path) -> None:
    rows = sentences(150)
    source = write_csv(tmp_path / "twins.csv", rows + rows[:50])
    prepared, recipe = prepared_rows(source, tiny_bert)
    small = Race(recipe, prepared, 1.0, Pace(0.0, 1.0))
    portions = small.portions(10)
    assert len(portions) == small.trainings == race.FOLDS
    assert sorted(np.concatenate(small.folds).tolist()) == list(range(180))
    held = np.concatenate([portion.held_out.targets for portion in portions if portion.held_out.targets is not None])
    assert (held == small.targets).all()
    for portion in portions:
        assert len(portion.train) + len(portion.held_out) == 180
        assert not _texts(portion.train) & _texts(portion.held_out)
        assert portion.held_out.targets is not None
        assert 0.3 < portion.held_out.targets.mean() < 0.7


def _texts(rows: Encoded) -> set[bytes]:
    return {rows.ids[start:end].tobytes() for start, end in pairwise(rows.offsets)}


def test_enough_validation_rows_are_not_learned_from(tiny_bert: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", sentences(40))
    write_csv(tmp_path / "validation.csv", sentences(200, seed=1))
    prepared, recipe = prepared_rows(tmp_path, tiny_bert)
    few = Race(recipe, prepared, 1.0, Pace(0.0, 1.0))
    (portion,) = few.portions(10)
    assert (few.trainings, len(portion.train), len(portion.held_out)) == (1, 40, 200)


@pytest.mark.parametrize(
    ("steps", "allowed", "planned"), [(100_000, 48.0, int(72 / 1.15 / 0.01)), (1_000, 120 - 1.15 * 10, 1_000)]
)
def test_the_time_of_a_whole_training_is_shared(
    steps: int, allowed: float, planned: int, tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert, **{"training.minutes": 2.0, "training.steps": steps})
    seen: list[tuple[float, int]] = []

    def run(self: Race, candidates: Any, planned: int, display: Any) -> list[Any]:
        seen.append((self.seconds, planned))
        return []

    monkeypatch.setattr(Race, "run", run)
    monkeypatch.setattr(short, "planned_seconds", lambda job, recipe: steps * 0.01)
    found = auto.choose(recipe, [FULL, HEAD], 0.4, prepared, Quiet())
    ((seconds, made),) = seen
    assert allowed - 20 < seconds <= allowed
    assert made == pytest.approx(planned, abs=1)
    assert found.choice is not None
    assert found.choice.allowed_seconds == pytest.approx(allowed, abs=0.01)
    assert found.training.minutes == pytest.approx(2.0 - found.choice.seconds / 60, abs=1e-3)


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
            {"distillation.teachers": ["runs/teacher"]},
            "field 'distillation.teachers': expected a student whose strategy is named, got auto with teachers. "
            "Name it with --strategy.",
        ),
        (
            {"training.folds": 4},
            "field 'training.folds': expected a strategy that was not chosen by rows that the folds hold out, got auto "
            "with folds. Name it with --strategy. One found on these rows makes the score of the folds look better "
            "than it is.",
        ),
        (
            {"strategy.options": {"candidates": ["full", "ful"]}},
            "field 'strategy.options.candidates.1.name': expected one of full, partial",
        ),
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


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_ctrl_c_while_choosing_leaves_nothing(
    number: int, code: int, name: str, tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    class Pressed(Quiet):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, message: str) -> None:
            self.lines.append(message)

        @contextmanager
        def bar(self, title: str, total: int) -> Iterator[Bar]:
            class Pressing:
                def advance(self, amount: int, note: str = "") -> None:
                    signal.raise_signal(number)

            yield Pressing()

    display = Pressed()
    settings = SETTINGS | {"strategy.options": {"candidates": ["head", "full"]}}
    with pytest.raises(StoppedError, match=f"Stopped by {name} while the strategy was chosen") as caught:
        chainrule.train(
            str(reviews),
            model=str(tiny_bert),
            strategy="auto",
            out=tmp_path / "run",
            settings=settings,
            display=display,
        )
    assert caught.value.exit_code == code
    assert "Stopping at the end of this step; once more stops at once." in display.lines
    assert not (tmp_path / "run").exists()


def test_trials_are_broken_off_when_the_time_is_over(tiny_bert: Path, reviews: Path) -> None:
    prepared, recipe = prepared_rows(reviews, tiny_bert)
    candidates = [Candidate(FULL, 1e-4), Candidate(HEAD, 1e-3)]
    results = Race(recipe, prepared, 0.5, Pace(0.0, 1e-9)).run(candidates, 5000, Quiet())
    assert {result.trial.note for result in results} == {"broken off: the time was over"}
    assert auto._winner(results, candidates, "accuracy") == (
        candidates[0], "every trial failed; it comes first in the order of preference."
    )  # fmt: skip


def test_a_finalist_that_fails_later_is_not_taken() -> None:
    first, second = Candidate(FULL, 1e-3), Candidate(FULL, 1e-4)
    said = Predictions(np.zeros(1), np.zeros(1))

    def result(candidate: Candidate, number: int, score: float | None) -> race.Result:
        trial = Trial(
            strategy="full",
            learning_rate=candidate.learning_rate,
            round=number,
            steps=9,
            rows=9,
            score=score,
            seconds=1,
        )
        return race.Result(candidate, trial, None if score is None else said)

    results = [result(first, 2, None), result(second, 2, None), result(first, 1, 0.9), result(second, 1, 0.8)]
    assert auto._winner(results, [first, second], "accuracy")[1].startswith("every trial failed")
    third = Candidate(HEAD, 1e-3)
    assert auto._winner([*results, result(third, 1, 0.5)], [first, second, third], "accuracy")[0] == third


def test_a_candidate_that_the_model_does_not_go_with_is_refused_before_the_race(
    tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"strategy.options": {"candidates": ["full", {"name": "partial", "options": {"top": 9}}]}}
    with pytest.raises(RecipeError, match="The candidate 'partial' cannot be trained") as caught:
        chainrule.train(str(reviews), model=str(tiny_bert), strategy="auto", out=tmp_path / "run", settings=settings)
    assert caught.value.problems[0].where == Where(field="strategy.options.candidates")


def test_it_is_shown_with_the_others() -> None:
    rows = chainrule.show("strategies")["strategies"]
    assert rows[-1]["name"] == "auto"
    assert rows[-1]["options"] == {"candidates": [], "share": 0.25}
    assert math.prod(reason is None for reason in rows[-1]["tasks"].values())


@pytest.mark.parametrize(
    ("task", "rows", "names"),
    [
        ("text-classification", 64, ["contrastive", "gradual", "full", "head"]),
        ("text-classification", 5000, ["gradual", "full", "head"]),
        ("regression", 64, ["gradual", "full", "head"]),
        ("text-generation", 800, ["lora", "full"]),
    ],
)
def test_what_races_where_nothing_is_named(task: str, rows: int, names: list[str]) -> None:
    recipe = parse_recipe({"task": task, "model": "minilm"})
    assert [spec.name for spec in auto._usual(recipe, rows)] == names


def test_a_choice_of_another_run_is_not_told_and_not_folded(found: Run, reviews: Path, tmp_path: Path) -> None:
    again = chainrule.train(
        str(reviews),
        recipe=found.path / "resolved.yaml",
        strategy="full",
        out=tmp_path / "r",
        settings={"training.steps": 2},
    )
    assert "How the strategy was found" not in (again.path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(RecipeError, match="The folds would flatter this strategy") as caught:
        chainrule.train(str(reviews), recipe=found.path / "resolved.yaml", out=tmp_path / "f", folds=3)
    assert str(caught.value.problems[0]) == (
        "field 'choice': expected a strategy that was not chosen by rows that the folds hold out, got one that auto "
        "has found. Remove choice from the recipe if the strategy was found on other rows."
    )


def test_a_damaged_choice_is_one_problem() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"task": "text-classification", "model": "minilm", "choice": {"by": "me"}})
    assert [str(problem) for problem in caught.value.problems] == [
        "field 'choice': expected what a training wrote there, unchanged, or null, got {'by': 'me'}. Change 'choice'."
    ]


def test_one_candidate_is_taken_without_a_race() -> None:
    only = Candidate(FULL, 1e-4)
    assert auto._winner([], [only], "accuracy") == (only, "there is nothing else to try.")
