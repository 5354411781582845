"""A search: a budget that is kept, trials that survive a kill, a winner that is judged once, and messages."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.cli import main
from chainrule.core.recipe import Recipe, parse_recipe, read_recipe
from chainrule.core.study import Study
from chainrule.errors import OutputError, RecipeError, StoppedError
from chainrule.hpo import trials as trials_module
from chainrule.hpo.optuna_study import rungs
from chainrule.hpo.search import Search
from chainrule.hpo.space import changed, default_space, read_space, space_of
from chainrule.system.progress import Bar, Quiet
from chainrule.tasks import TASKS
from chainrule.testing.processes import prepared
from chainrule.training.completion import rate_of
from chainrule.training.run import prepare_rows

pytestmark = pytest.mark.unit
SETTINGS: dict[str, Any] = {"training.threads": 1, "training.precision": "float32", "training.steps": 30}
SPACE: dict[str, Any] = {
    "strategy.name": ["full", "head", "partial"],
    "strategy.options.top": {"choices": [1, 2], "when": {"strategy.name": ["partial"]}},
    "optimizer.learning_rate": {"low": 0.1, "high": 100.0, "log": True, "times_default": True},
}


def asked(tiny_bert: Path, reviews: Path, **settings: Any) -> Recipe:
    recipe = parse_recipe({"task": "text-classification", "model": str(tiny_bert), "data": str(reviews)})
    return recipe.replace(SETTINGS | settings)


@pytest.fixture(scope="module")
def searched(tiny_bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    out = tmp_path_factory.mktemp("search") / "study"
    return chainrule.search(recipe=asked(tiny_bert, reviews), space=SPACE, how={"budget": "20m", "trials": 7}, out=out)


def test_the_best_of_the_trials_is_trained_whole_and_judged_once(searched: Study) -> None:
    told = searched.summary
    done = [trial for trial in told["trials"] if trial["state"] == "complete"]
    assert len(told["trials"]) == 7
    assert told["selected"] == max(trial["metric"] for trial in done)
    best = told["trials"][told["best"]["number"]]
    assert best["values"] == told["best"]["values"]
    assert all(("strategy.options.top" in t["values"]) == (t["values"]["strategy.name"] == "partial") for t in done)
    recipe = read_recipe(searched.run.path / "recipe.yaml")
    assert recipe.strategy.name == told["best"]["values"]["strategy.name"]
    rate = rate_of(recipe.replace({"optimizer.learning_rate": None})) * best["values"]["optimizer.learning_rate"]
    assert recipe.optimizer.learning_rate == pytest.approx(rate, rel=1e-3)
    assert searched.run.summary["steps"] == 30
    evaluation = searched.run.contents()["evaluations"]["test"]
    assert told["test"] == evaluation["metrics"]["accuracy"]
    assert told["winners_curse"] == pytest.approx(told["selected"] - told["test"]["value"], abs=1e-4)
    page = (searched.path / "report.html").read_text(encoding="utf-8")
    assert "on rows that nothing was chosen by" in page
    assert "试训练时的分数" in page
    assert page.count('class="speck"') >= len(done)


def test_trials_are_scored_short_first(searched: Study) -> None:
    for trial in searched.summary["trials"]:
        steps = [int(step) for step in trial["scores"]]
        assert steps == rungs(30, "median")[: len(steps)]
        assert trial["state"] != "complete" or steps == [4, 10, 30] == [4, 10, trial["steps"]]
        assert trial["state"] != "pruned" or trial["steps"] < 30


def test_trials_that_read_alike_are_encoded_once(
    tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(recipe: Recipe, *others: Any) -> Any:
        calls.append(recipe.strategy.name)
        return prepare_rows(recipe, *others)

    monkeypatch.setattr(trials_module, "prepare_rows", counted)
    recipe, space = asked(tiny_bert, reviews), space_of(SPACE, asked(tiny_bert, reviews))
    made = trials_module.Trials(recipe, str(reviews), space, Search.__new__(Search))  # type: ignore[arg-type]
    for name in ("full", "head", "full"):
        _, known = made.prepared(recipe.replace({"strategy": name}))
        assert known.strategy.name == name
        assert known.optimizer.learning_rate == rate_of(recipe.replace({"strategy": name}))
    assert calls == ["full"]
    made.prepared(recipe.replace({"model.max_length": 16}))
    assert len(calls) == 2


def search_in_a_child(recipe: str, out: str) -> None:
    chainrule.search(recipe=Path(recipe), space=SPACE, how={"budget": "20m", "trials": 6}, out=out)


def test_a_killed_search_goes_on(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "study"
    file.write_text(asked(tiny_bert, reviews).to_yaml(), encoding="utf-8")
    process = prepared().Process(target=search_in_a_child, args=(str(file), str(out)))
    process.start()
    while process.exitcode is None and '"spent"' not in (_text(out / "search.json")):  # a trial has ended
        time.sleep(0.02)
    process.kill()
    process.join()
    before = Search(out, None, Quiet())
    assert before.settings.trials == 6
    assert not (out / "study.json").exists()
    study = chainrule.resume_search(out)
    told = study.summary
    left = [trial for trial in told["trials"] if trial["state"] in ("complete", "pruned")]
    assert 5 <= len(left) <= 6
    assert all(trial["state"] in ("complete", "pruned", "fail") for trial in told["trials"])
    assert study.run.summary["steps"] == 30
    first = study.run.artifact.manifest.weights_sha256
    assert chainrule.resume_search(out).run.artifact.manifest.weights_sha256 == first
    assert len(study.summary["trials"]) == len(told["trials"])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


class Interrupting(Quiet):
    """Sends Ctrl-C after the second trial."""

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        yield self

    def advance(self, amount: int, note: str = "") -> None:
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 2:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_what_is_done(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with pytest.raises(StoppedError) as stopped:
        chainrule.search(
            recipe=asked(tiny_bert, reviews),
            space=SPACE,
            how={"budget": "20m", "trials": 4},
            out=out,
            display=Interrupting(),
        )
    assert stopped.value.exit_code == 130
    assert str(stopped.value) == (
        "Stopped by Ctrl-C in a trial.\n"
        f"  - {out}: expected a search to its end, got 3 trials; all of them are kept. "
        f"Go on with: chainrule search --resume {out}."
    ).replace(f"{out}.", f"{out}")
    told = chainrule.resume_search(out).summary
    assert [trial["state"] for trial in told["trials"]].count("fail") == 1


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "nsga2"])
def test_other_samplers(sampler: str, tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    space: dict[str, Any] = {
        "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "schedule.warmup": {"low": 0.0, "high": 0.3},
        "structure.keep_layers": [None, [0]],
    }
    how = {"budget": "20m", "trials": 5, "sampler": sampler, "pruner": "hyperband"}
    recipe = asked(tiny_bert, reviews, **{"training.steps": 20})
    told = chainrule.search(recipe=recipe, space=space, how=how, out=tmp_path / "study").summary
    assert len(told["trials"]) == 5
    assert all(trial["values"]["structure.keep_layers"] in (None, [0]) for trial in told["trials"])
    if sampler == "nsga2":
        assert told["front"]
        sizes = {str(t["values"]["structure.keep_layers"]): t["objectives"][2] for t in told["trials"]}
        assert sizes["[0]"] < sizes["None"]
        assert "no other trial is better in all three" in (tmp_path / "study" / "report.html").read_text(
            encoding="utf-8"
        )


def told_by(error: pytest.ExceptionInfo[Any]) -> str:
    return str(error.value)


def test_a_space_that_is_wrong(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    recipe = asked(tiny_bert, reviews)
    file = tmp_path / "space.yaml"
    file.write_text("", encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        read_space(file, recipe)
    assert told_by(error) == (
        "The space is empty.\n"
        f"  - {file}: expected dotted keys of a recipe, each with its choices or its range, got nothing. "
        "Name keys with choices or ranges, such as training.batch_size: [16, 32]; or leave --space out."
    )
    file.write_text(
        "training.batchsize: [16, 32]\ndata.source: [a, b]\nstrategy.options.top: [1, 2]\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError) as error:
        read_space(file, recipe)
    said = told_by(error)
    assert said.startswith("The space does not go together with the recipe.\n")
    assert f"{file}, field 'training.batchsize': expected one of the keys accelerate, " in said
    assert "got the unknown key 'batchsize'. Correct the spelling or remove it." in said
    assert (
        f"{file}, field 'data.source': expected a key that trials may differ in, got data.source. Set it in the" in said
    )
    assert f"{file}, field 'strategy.options.top': expected " in said
    file.write_text("schedule.warmup: {low: 0.3, high: 0.1}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="expected a low below high"):
        read_space(file, recipe)
    file.write_text("schedule.warmup: {low: 0.1, high: 3}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"field 'schedule\.warmup': expected less than 1, got 3"):
        read_space(file, recipe)
    file.write_text("strategy.options.top: {choices: [1], when: {strategy.name: [partial]}}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"expected keys that stand before it under `when`, got strategy\.name\."):
        read_space(file, recipe)


def test_what_cannot_be_searched(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    recipe, out = asked(tiny_bert, reviews), tmp_path / "study"
    with pytest.raises(RecipeError) as error:
        chainrule.search(recipe=recipe, space=SPACE, how={"budget": "soon"}, out=out)
    assert told_by(error) == (
        "The budget cannot be read.\n"
        "  - field 'budget': expected a time such as 30m, 2h or 90s, got 'soon'. Change --budget."
    )
    with pytest.raises(RecipeError, match="There is no sampler 'grid'"):
        chainrule.search(recipe=recipe, space=SPACE, how={"budget": "5m", "sampler": "grid"}, out=out)
    with pytest.raises(RecipeError, match=r"search works on one strategy\."):
        chainrule.search(recipe=recipe, strategy="auto", space=SPACE, how={"budget": "5m"}, out=out)
    with pytest.raises(RecipeError, match=r"A search cannot be made of this recipe\."):
        chainrule.search(recipe=recipe, folds=3, space=SPACE, how={"budget": "5m"}, out=out)
    assert not out.exists()
    with pytest.raises(RecipeError) as error:
        chainrule.search(recipe=recipe, space=SPACE, how={"budget": "0.01s"}, out=out)
    said = told_by(error)
    assert said.startswith("The budget is too short for a search.\n  - field 'budget': expected at least ")
    assert " minutes: 2 trials of 20 steps and the winner's training, got " in said
    with pytest.raises(OutputError) as unreachable:
        chainrule.search(
            recipe=recipe,
            space=SPACE,
            how={"budget": "5m", "storage": "sqlite:////nowhere/at/all.db"},
            out=tmp_path / "two",
        )
    said = told_by(unreachable)
    assert said.startswith(
        "The study cannot be kept there.\n  - field 'storage': expected a database that Optuna can use"
    )
    assert "Check that it runs, its address and its driver; or leave --storage out" in said
    with pytest.raises(OutputError, match="There is no search at"):
        chainrule.resume_search(tmp_path / "nothing")


def test_another_storage_is_shared(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    how = {"budget": "20m", "trials": 3, "storage": f"sqlite:///{tmp_path / 'shared.db'}"}
    study = chainrule.search(recipe=asked(tiny_bert, reviews), space=SPACE, how=how, out=tmp_path / "study")
    assert len(study.summary["trials"]) == 3
    assert (tmp_path / "shared.db").is_file()
    assert not (study.path / "study.db").exists()
    how["trials"] = 4
    other = chainrule.search(recipe=asked(tiny_bert, reviews), space=SPACE, how=how, out=tmp_path / "b" / "study")
    assert [trial["values"] for trial in other.summary["trials"][:3]] == [t["values"] for t in study.summary["trials"]]
    assert len(other.summary["trials"]) == 4


def test_the_command(tiny_bert: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "study"
    file.write_text(asked(tiny_bert, reviews).to_yaml(), encoding="utf-8")
    space = tmp_path / "space.yaml"
    space.write_text("optimizer.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n", encoding="utf-8")
    words = [
        "search",
        str(file),
        "--space",
        str(space),
        "--budget",
        "20m",
        "--trials",
        "2",
        "--out",
        str(out),
        "--json",
    ]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert {"best", "selected", "validation", "test", "winners_curse", "importance", "trials"} <= told.keys()
    with pytest.raises(SystemExit) as stop:
        main(["search", "--resume", str(out)])
    assert stop.value.code == 0
    assert "winner: trial" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["search", "--resume", str(out), "--trials", "3"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "name", sorted(set(TASKS) - {"image-classification", "seq2seq", "text-generation", "preference"})
)
def test_the_default_space_goes_together_with_every_task(name: str, tiny_bert: Path) -> None:
    recipe, task = parse_recipe({"task": name, "model": str(tiny_bert)}), TASKS[name]
    space = space_of(default_space(recipe, task, with_structure=True), recipe)
    assert {"strategy.name", "optimizer.learning_rate", "training.batch_size"} <= space.parameters.keys()


def test_another_strategy_begins_without_the_options_of_the_one_before(tiny_bert: Path) -> None:
    recipe = parse_recipe(
        {"task": "regression", "model": str(tiny_bert), "strategy": {"name": "partial", "options": {"top": 1}}}
    )
    assert changed(recipe, {"strategy.name": "full"}, None).strategy.options == {}
    kept = changed(recipe, {"training.batch_size": 16}, None)
    assert kept.strategy.options == {"top": 1}
    rate = changed(recipe, {"strategy.name": "head", "optimizer.learning_rate": 2.0}, rate_of).optimizer.learning_rate
    assert rate == pytest.approx(2 * rate_of(recipe.replace({"strategy": "head"})))
