"""A search: trials within a budget, the winner trained whole and judged once on rows that nothing was chosen by."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainrule.core.artifact import Run
from chainrule.core.parsing import merge
from chainrule.core.recipe import Data, Recipe, parse_recipe
from chainrule.core.report import EvaluationReport
from chainrule.core.study import PAGE, SEARCH, STUDY, WINNER, Study
from chainrule.errors import OutputError, Problem, RecipeError, StoppedError, Where
from chainrule.evaluation.artifact import evaluate_artifact, keep_report
from chainrule.evaluation.report import write_report
from chainrule.evaluation.study_page import write_study_page
from chainrule.hpo.auto import refuse_open
from chainrule.hpo.optuna_study import Settings, has_password, open_study, optuna, quietly, reachable, refuse_names
from chainrule.hpo.short import FEWEST_STEPS, Pace, pace_of
from chainrule.hpo.space import Space, space_of
from chainrule.hpo.told import importance_of, trials_of
from chainrule.hpo.trials import COMPLETE, FAILED, RUNNING, StoppedTrialError, Trials, freed
from chainrule.system.files import atomic_folder, read_json, write_json
from chainrule.system.lock import only_one
from chainrule.system.progress import Bar, Display
from chainrule.system.stop import StopRequest, stop_requests, who_stopped
from chainrule.training.job import planned_steps
from chainrule.training.resolve import RESERVE_FOR_THE_REST
from chainrule.training.run import resume_run, train_recipe

AIMED = 12  # trials at least, if their steps can be made few enough
FEWEST = 2
Helpers = Callable[["Search", float], None]


@dataclass(frozen=True)
class Part:
    """What is settled before the first trial.

    Attributes:
        most: steps of a trial.
        share: of the whole training, that these are.
        spent: seconds of the budget so far.
    """

    precision: str
    most: int
    share: float
    spent: float


class Search:
    """One search in one folder.

    Args:
        source: what to read instead of the recipe's `data.source`; None for that.
        helpers: makes trials of a search, until so many seconds are spent, in other processes; None to make them here.
    """

    def __init__(self, folder: Path, source: Any, display: Display, helpers: Helpers | None = None) -> None:
        self.folder, self.display, self.helpers = folder, display, helpers
        asked = read_json(folder / SEARCH)
        self.recipe: Recipe = parse_recipe(asked["recipe"])
        self.settings = Settings.model_validate(asked["settings"])
        self.space = Space.model_validate(asked["space"])
        self.source = self.recipe.data.source if source is None else source
        self.trials = Trials(self.recipe, self.source, self.space, self.settings)
        self.began = time.perf_counter()
        self.before = float(asked.get("spent", 0.0))
        self.mark: str = asked.get("mark", str(folder.resolve()))  # whose trials are whose in a common storage
        self.study: Any = None
        self.expected = 0
        self.at_once = 1  # trials that are made at the same time

    def go(self) -> Study:
        """Trials, the winner, the report; what is there already is not made again.

        Raises:
            UserError: the data, the model, the storage or the budget is wrong.
            StoppedError: Ctrl-C or SIGTERM; everything so far is kept.
        """
        with only_one(self.folder), reachable(self.settings, self.folder):
            if (self.folder / STUDY).is_file():
                self.display.say(f"The search {self.folder} is finished; there is nothing to go on with.")
                return Study(self.folder)
            prepared, known = self.trials.prepared(self.recipe)
            with freed():
                pace, precision = pace_of(known, prepared)
            steps = planned_steps(known, len(prepared.encoded["train"]))
            self.trials.recipe = self.recipe.replace({"training.precision": precision})
            reserve = self._final_seconds(pace, steps)
            self.trials.most = self._steps_of_trials(pace, steps, reserve)
            self.trials.share = self.trials.most / steps
            self.open()
            self._again()
            self._preview(pace, steps, reserve)
            if self.helpers is not None:
                self.helpers(self, self.settings.seconds - reserve)
                self._again()  # those of helpers that were lost
            self.make_trials(self.settings.seconds - reserve)
            best = self._best()
            run = self._winner(best)
            self._judge(best, run, "test" in prepared.dataset.splits)
        return Study(self.folder)

    def open(self, helper: int = 0) -> None:
        """Open the study that the trials are kept in.

        Args:
            helper: as `open_study` takes it.
        """
        seed, most, metric = self.recipe.seed, self.trials.most, self.trials.metric
        self.study = open_study(
            self.folder, self.settings, seed=seed, most=most, metric=metric, who=self.mark, helper=helper
        )

    def _spent(self) -> float:
        """Seconds, those before an interruption included; those of others on the same storage are theirs."""
        trials = self.study.trials if self.study else []
        done: float = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials if self._is_own(trial))
        return max(done / self.at_once, self.before + time.perf_counter() - self.began)

    @property
    def part(self) -> Part:
        """What a helper must know to make trials of this search."""
        precision = self.trials.recipe.training.precision
        return Part(precision, self.trials.most, self.trials.share, self._spent())

    def _final_seconds(self, pace: Pace, steps: int) -> float:
        """That the winner's whole training, and judging it, will take; the slowest strategies may take longer."""
        return RESERVE_FOR_THE_REST * steps * pace.step + 3 * pace.load

    def _steps_of_trials(self, pace: Pace, steps: int, reserve: float) -> int:
        """As many as let AIMED trials fit beside the winner's training, those of the whole training at most.

        Raises:
            RecipeError: there is no time for two trials worth the name.
        """
        left, fewest = self.settings.seconds - reserve, min(FEWEST_STEPS, steps)
        wanted = max(FEWEST, min(self.settings.trials or AIMED, AIMED))
        most = min(steps, math.floor((left / wanted - pace.load) / pace.step))
        if most >= fewest:
            return most
        if left >= FEWEST * (pace.load + fewest * pace.step):
            return fewest
        needed = math.ceil((reserve + FEWEST * (pace.load + fewest * pace.step)) / 6) / 10
        problem = Problem(
            expected=f"at least {needed:g} minutes: {FEWEST} trials of {fewest} steps and the winner's training",
            got=f"{self.settings.seconds / 60:g} minutes",
            todo=f"Give --budget {needed:g}m, or make the training shorter: --set training.epochs=1.",
            where=Where(field="budget"),
        )
        raise RecipeError("The budget is too short for a search.", [problem])

    def _preview(self, pace: Pace, steps: int, reserve: float) -> None:
        each = pace.load + self.trials.most * pace.step
        left = max(0.0, self.settings.seconds - reserve - self._spent())
        count = min(self.settings.trials or math.inf, max(1, int(left / each)))
        self.expected = int(count)
        self.display.say(
            f"Search: about {count:g} trials of at most {self.trials.most:,} of {steps:,} steps, {each:.0f} s each "
            f"where none is ended early; then the winner's training, about {reserve:.0f} s. "
            f"Keys: {', '.join(self.space.parameters)}."
        )

    def _again(self) -> None:
        """Trials that a kill has left unfinished count as failed, and are made again."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name == RUNNING and self._is_own(trial):
                with quietly():
                    self.study.tell(trial.number, state=optuna().trial.TrialState.FAIL)
                    if trial.params:
                        self.study.enqueue_trial(trial.params)

    def _is_own(self, trial: Any) -> bool:
        """Whether a trial is of this search; others may share its storage, and have only begun one without a mark."""
        return bool(trial.user_attrs.get("folder", self.mark if self.settings.storage is None else "") == self.mark)

    def _taken(self, before: int | None = None) -> int:
        """Trials that count as made: those that have ended, and those that others on the same storage are making.

        Args:
            before: only those with a lower number.
        """
        return sum(
            trial.state.is_finished() or (trial.state.name == RUNNING and not self._is_own(trial))
            for trial in self.study.get_trials(deepcopy=False)
            if before is None or trial.number < before
        )

    def make_trials(self, seconds: float, most: int | None = None) -> None:
        """As long as there is time, and not more than were asked for.

        Args:
            most: by this process, beside those of others; None for what is left of those that were asked for.
        """
        made, wanted = 0, self.settings.trials or 10_000
        with (
            self.display.bar("trials", max(1, self.expected)) as bar,
            stop_requests(self.display.say) as stop,
        ):
            while self._spent() < seconds or not self._finished():
                if made == most or (most is None and self._taken() >= wanted):
                    break
                with quietly():
                    trial = self.study.ask()
                trial.set_user_attr("folder", self.mark)
                if most is None and self._taken(before=trial.number) >= wanted:
                    self._give_up(trial)
                    break
                self._make(trial, stop, bar)
                made += 1
                if made >= 2 * AIMED and not self._finished() and self._spent() >= seconds:
                    break
                self._keep_time()

    def _make(self, trial: Any, stop: StopRequest, bar: Bar) -> None:
        """One trial, and what the study is told of it.

        Raises:
            StoppedError: somebody wants an end; the trial will be made again.
        """
        states = optuna().trial.TrialState
        try:
            state, values = self.trials.run(trial, stop, lambda text: bar.advance(1, text))
        except StoppedTrialError:
            with quietly():
                self.study.tell(trial, state=states.FAIL)
                self.study.enqueue_trial(trial.params)
            raise self._stopped(stop.signal) from None
        with quietly():
            self.study.tell(trial, values, state=getattr(states, state))

    def _give_up(self, trial: Any) -> None:
        """A trial that another worker has been quicker with."""
        trial.set_user_attr("note", "Other workers are making the last trials.")
        with quietly():
            self.study.tell(trial, state=optuna().trial.TrialState.FAIL)

    def _keep_time(self) -> None:
        write_json(self.folder / SEARCH, read_json(self.folder / SEARCH) | {"spent": round(self._spent(), 2)})

    def _finished(self) -> bool:
        return any(trial.state.name == COMPLETE for trial in self.study.get_trials(deepcopy=False))

    def _best(self) -> Any:
        """The best trial by the metric.

        Raises:
            RecipeError: none came to its end.
        """
        found = [trial for trial in self.study.trials if trial.state.name == COMPLETE]
        if found:
            return max(found, key=lambda trial: (trial.values[0], trial.user_attrs["tie"], -trial.number))
        notes = [trial.user_attrs.get("note") for trial in self.study.trials if trial.state.name == FAILED]
        got = next((note for note in notes if note), "none that ended")
        todo = "Correct the space, or give a longer --budget."
        raise RecipeError("No trial came to its end.", [Problem("a trial with a score", got, todo)])

    def _winner(self, best: Any) -> Run:
        """The winner's recipe, trained whole as any other."""
        values, out = best.user_attrs["values"], self.folder / WINNER
        self.display.say(f"The best of {len(self.study.trials)} trials is {best.number}: {_shown(values)}")
        began = time.perf_counter()
        if out.is_dir():
            return resume_run(out, None if self.recipe.data.source else self.source, self.display, began)
        recipe = self.trials.recipe_of(values).replace({"training.precision": self.trials.recipe.training.precision})
        return train_recipe(recipe, self.source, out, self.display, began)

    def _judge(self, best: Any, run: Run, has_test: bool) -> None:
        """Score the winner once on the test split, and write everything down."""
        report = self._tested(run) if has_test else None
        name = self.trials.metric
        selected = float(best.user_attrs["metric"])
        test = None if report is None else report.as_dict()["metrics"].get(name)
        told = {
            "study": str(self.folder),
            "run": str(run.path),
            "metric": name,
            "sampler": self.settings.sampler,
            "pruner": self.settings.pruner,
            "storage": self.settings.shown_storage,
            "task": self.recipe.task.name,
            "model": self.recipe.model.name,
            "data": self.recipe.data.source,
            "budget_seconds": self.settings.seconds,
            "steps_of_a_trial": self.trials.most,
            "trials": trials_of(self.study, self.space),
            "best": {"number": best.number, "values": best.user_attrs["values"]},
            "front": [trial.number for trial in self.study.best_trials] if self.settings.is_multiple else [],
            "importance": importance_of(self.study),
            "selected": selected,
            "validation": run.summary["metrics"].get(name),
            "test": test,
            "winners_curse": None if test is None else round(selected - test["value"], 5),
            "verdict": None if report is None else report.verdict.text,
            "seconds": round(self._spent(), 2),
        }
        write_json(self.folder / STUDY, told)
        write_study_page(self.folder / PAGE, told)

    def _tested(self, run: Run) -> EvaluationReport:
        data: Data = self.recipe.data
        report = evaluate_artifact(run.artifact, self.source, data, split="test", limit=None, display=self.display)
        keep_report(run.artifact, report)
        write_report(run.path)
        return report

    def _stopped(self, number: int | None) -> StoppedError:
        name, code = who_stopped(number or 0)
        self._keep_time()
        done = sum(trial.state.is_finished() for trial in self.study.trials)
        todo = f"Go on with: chainrule search --resume {self.folder}"
        problem = Problem("a search to its end", f"{done} trials; all of them are kept", todo, Where(str(self.folder)))
        return StoppedError(f"Stopped by {name} in a trial.", [problem], code)


def help_search(search: Search, part: Part, helper: int, helpers: int, limits: tuple[float, int | None]) -> None:
    """Make trials of a search that another process has begun, and that ends there.

    Args:
        search: of the same folder, in this process.
        helper: which of the helpers this is, from 1.
        limits: seconds of the whole search that may be spent on trials, and how many trials this helper makes at most.
    """
    seconds, most = limits
    search.trials.recipe = search.recipe.replace({"training.precision": part.precision})
    search.trials.most, search.trials.share = part.most, part.share
    search.before, search.at_once = part.spent, helpers
    with reachable(search.settings, search.folder):
        search.open(helper)
        search.make_trials(seconds, 10_000 if most is None else most)


def begin_search(recipe: Recipe, space: Mapping[str, Any], settings: Settings, out: Path) -> None:
    """The folder of a new study, with what was asked.

    Raises:
        UserError: the recipe leaves its strategy open, or there is no such sampler, pruner or space.
    """
    refuse_names(settings)
    refuse_open(recipe, "search")
    problems = [
        Problem("a training of its own", key, "Leave it out.", Where(field=f"training.{key}"))
        for key in ("folds", "minutes")
        if getattr(recipe.training, key) is not None
    ]
    if problems:
        raise RecipeError("A search cannot be made of this recipe.", problems)
    checked = space_of(space, recipe)
    optuna()
    asked = {
        "recipe": merge(recipe.model_dump(mode="json"), {"prediction": None}),
        "settings": settings.model_dump(mode="json"),
        "space": checked.model_dump(mode="json"),
        "mark": secrets.token_hex(8),
    }
    with atomic_folder(out) as folder:
        write_json(folder / SEARCH, asked)
    if has_password(settings.storage):
        out.chmod(0o700)


def require_study(folder: Path) -> None:
    """Make sure that a folder is that of a study.

    Raises:
        OutputError: it is not.
    """
    if not (folder / SEARCH).is_file():
        got = f"a folder without {SEARCH}" if folder.exists() else "no such folder"
        problem = Problem(
            "a study folder", got, "Give the folder that `chainrule search --out` made.", Where(str(folder))
        )
        raise OutputError(f"There is no search at {folder}.", [problem])


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
