"""From data, machine and models to a recipe and what it will take.

Every model with every strategy that comes into question is counted through; those that come first are then measured,
until one fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from chainrule.core.plan import Option, PlanReport, Reason
from chainrule.core.prediction import Prediction
from chainrule.core.recipe import Recipe, Spec
from chainrule.errors import MissingExtraError, Problem, RecipeError, ShortageError, Where
from chainrule.planning.cost import Pace, assumed_pace, predict, seen_pace
from chainrule.planning.limits import Limits, in_time
from chainrule.planning.machine import Machine, look_at_machine
from chainrule.planning.models import Candidate, fallback, look_at_model
from chainrule.planning.profile import look_at_rows
from chainrule.planning.recommend import Asked, facts_of, fewer_epochs, recommend, seen, strategies_for
from chainrule.planning.rules import apply, reason_of
from chainrule.system.progress import Display
from chainrule.tasks.prepare import Prepared
from chainrule.tasks.suited import task_of
from chainrule.training.measure import Measured

MOST_MEASURED = 3
HOPELESS = 3.0  # times a limit, as counted: not worth measuring
SMALLER = (1, 4, 16)  # pieces that a batch goes through the model in
Measure = Callable[[Recipe, Prepared, int | None], Measured]
Prepare = Callable[[Recipe], tuple[Prepared, Recipe]]


@dataclass(frozen=True)
class Draft:
    """A recipe for one model with one strategy, and what is known of its cost.

    Attributes:
        recipe: as it is to be written; `trained` as a measurement takes it.
    """

    recipe: Recipe
    trained: Recipe
    reasons: tuple[Reason, ...]
    prepared: Prepared
    measured: Measured
    prediction: Prediction

    @property
    def names(self) -> tuple[str, str]:
        return self.recipe.model.name, self.recipe.strategy.name

    def option(self, note: str = "") -> Option:
        """It as a line of the report."""
        return Option(
            model=self.names[0],
            strategy=self.names[1],
            epochs=self.trained.training.epochs,
            seconds=self.prediction.seconds,
            peak_memory_mb=self.prediction.peak_memory_mb,
            measured=self.prediction.measured_steps > 0,
            note=note,
        )


class Planner:
    """Plans one training.

    Args:
        prepare: reads and encodes the rows for a recipe.
        measure: makes steps of a recipe; 0 counts alone, None makes enough to tell.
    """

    def __init__(self, asked: Asked, prepare: Prepare, measure: Measure, display: Display) -> None:
        self.asked, self.prepare, self.measure, self.display = asked, prepare, measure, display
        self.task = task_of(asked.recipe)
        self.rows: dict[tuple[str, int | None], tuple[Prepared, Recipe]] = {}
        self.models: dict[str, Candidate] = {}
        self.options: dict[tuple[str, str], Option] = {}
        self.slower: dict[str, float] = {}  # model -> seconds as measured over those as counted
        self.precision: dict[str, str] = {}
        self.machine: Machine

    def plan(self) -> PlanReport:
        """Look at everything, choose, measure, judge.

        Raises:
            UserError: the data, a model or the recipe is wrong.
        """
        began = time.perf_counter()
        self._look()
        limits = self.asked.limits.with_free(self.machine.free_mb + _resident() // 2**20)
        drafts = [draft for name in self.models for draft in self._drafts(name)]
        ordered, order = self._in_order(drafts)
        best, fits = self._choose(ordered, limits)
        return PlanReport(
            goal=self.asked.goal,
            data=look_at_rows(best.prepared).as_dict(),
            machine=self.machine.as_dict(),
            models=tuple(model.as_dict() for model in self.models.values()),
            options=tuple(self.options.values()),
            predicted=best.prediction.model_dump(mode="json"),
            recipe=_with_prediction(best).model_dump(mode="json") if fits else None,
            reasons=(order, *best.reasons),
            limits=limits.as_dict(),
            go=fits,
            verdict=limits.verdict(best.prediction, best.names, fits=fits),
            nearest=None if fits else best.option(limits.why(best.prediction)),
            took=round(time.perf_counter() - began, 2),
        )

    def _look(self) -> None:
        """At the machine, and at how each model reads the rows; where none does, at one that is made from them."""
        threads = 1
        for name in self.asked.models:
            threads = self._read(name).training.threads or 1
        spare = fallback(self.task, self.models, self.asked.recipe)
        if spare is not None and not any(model.reads for model in self.models.values()):
            self._read(spare)
        self.display.say("Looking at the machine …")
        self.machine = look_at_machine(self.asked.recipe.training.device, threads)

    def _read(self, name: str) -> Recipe:
        prepared, known = self._prepared(self._of(name, self.asked.recipe.model.max_length))
        self.models[name] = look_at_model(name, prepared)
        return known

    def _of(self, name: str, length: int | None) -> Recipe:
        return self.asked.recipe.replace({"model.name": name, "model.max_length": length, "strategy": "full"})

    def _prepared(self, recipe: Recipe) -> tuple[Prepared, Recipe]:
        key = recipe.model.name, recipe.model.max_length
        if key not in self.rows:
            self.rows[key] = self.prepare(recipe)
        return self.rows[key]

    def _drafts(self, name: str) -> list[Draft]:
        """The strategies for a model that can be trained, the preferred first, each counted through."""
        found, length = [], self.asked.recipe.model.max_length
        facts = facts_of(self.asked, self.task, self.models[name], self._prepared(self._of(name, length))[0])
        for spec, why in strategies_for(self.asked, self.task, facts):
            try:
                found.append(self._draft(name, spec, recommend(self.asked, spec, why, self.models[name], facts)))
            except (ShortageError, RecipeError, MissingExtraError) as error:
                self.options[name, spec.name] = Option(model=name, strategy=spec.name, note=error.message)
        return found

    def _draft(self, name: str, spec: Spec, recommended: tuple[Recipe, list[Reason]]) -> Draft:
        recipe, reasons = recommended
        fit, length = self.models[name].fit, recipe.model.max_length
        if length is not None and length >= min(fit.longest, fit.limit):  # nothing more is cut: the same tokens
            length = self.asked.recipe.model.max_length
        prepared, known = self._prepared(self._of(name, length))
        decided = {
            "model.max_length": prepared.max_length,
            "model.options": prepared.model_options,
            "training.threads": known.training.threads,
            "training.deterministic": known.training.deterministic,
            "training.precision": self.precision.get(name, recipe.training.precision),
        }
        trained = recipe.replace(decided)
        measured = self.measure(trained, prepared, 0)
        self.precision[name] = measured.precision
        trained = trained.replace({"training.precision": measured.precision})  # so that no step is made in another one
        sizes = {"parameters": measured.work.parameters, "layers": measured.work.layers}
        self.models[name] = self.models[name].model_copy(update=sizes)
        prediction = predict(measured, assumed_pace(self.machine, measured.precision), _resident())
        return Draft(recipe, trained, tuple(reasons), prepared, measured, prediction)

    def _in_order(self, drafts: Sequence[Draft]) -> tuple[list[Draft], Reason]:
        """By model as the goal asks, those that read the rows first; then by strategy. And why the first is first."""
        rule = apply("models", {"goal": self.asked.goal})
        if rule is None or not drafts:
            got = "; ".join(f"{option.model} with {option.strategy}: {option.note}" for option in self.options.values())
            problem = Problem("a strategy that can be trained", got, "Name another model.", Where(field="model.name"))
            raise RecipeError("Nothing can be recommended for these rows.", [problem])
        sign = -1 if rule.value == "largest" else 1
        ranks = {name: (not model.reads, sign * (model.parameters or 0)) for name, model in self.models.items()}
        ordered = sorted(drafts, key=lambda draft: ranks[draft.names[0]])
        text = reason_of(rule, {}) if len(self.models) > 1 else "The only one in question."
        unread = [model for model in self.models.values() if not model.reads]
        if unread and len(self.models) > 1:
            text = f"{unread[0].fit.unknown:.0%} of the tokens are unknown to {unread[0].name}."
        first = ordered[0].names[0]
        return ordered, Reason(key="model", value=first, text=text, evidence=rule.evidence, page=rule.page)

    def _choose(self, drafts: Sequence[Draft], limits: Limits) -> tuple[Draft, bool]:
        """The first that fits, measured; else the one that comes nearest. Whether it fits."""
        nearest: Draft | None = None
        chosen: Draft | None = None
        tries = 0
        for draft in drafts:
            shorter, counted = in_time(draft.trained, draft.measured, self._pace(draft), limits, _resident())
            found = replace(draft, trained=shorter, prediction=counted)
            if chosen is not None or tries == MOST_MEASURED:
                self.options[draft.names] = found.option()
            elif limits.excess(counted) > HOPELESS:
                self.options[draft.names] = found.option(f"as counted, {limits.why(counted)}")
            else:
                tries += 1
                found = self._measured(draft, limits)
                if limits.excess(found.prediction) <= 1:
                    chosen = found
                self.options[draft.names] = found.option("recommended" if chosen else limits.why(found.prediction))
            if nearest is None or limits.excess(found.prediction) < limits.excess(nearest.prediction):
                nearest = found
        if nearest is None:
            raise ValueError("there must be something to choose from")
        return (nearest, False) if chosen is None else (chosen, True)

    def _pace(self, draft: Draft) -> Pace:
        """As counted, set right by what was measured of the same model."""
        pace, by = assumed_pace(self.machine, draft.measured.precision), self.slower.get(draft.names[0], 1.0)
        return Pace(pace.step * by, pace.byte * by, pace.operation * by)

    def _measured(self, draft: Draft, limits: Limits) -> Draft:
        """By steps that were made: with smaller pieces where memory asks for them, and fewer epochs where time does."""
        self.display.say(f"Measuring some steps of {draft.names[0]} with {draft.names[1]} …")
        found = draft
        for smaller in SMALLER:
            try:
                found = self._tried(draft, smaller, limits)
            except ShortageError:
                needed = max(draft.prediction.peak_memory_mb, 1.01 * (limits.memory_mb or 0.0))
                found = replace(draft, prediction=draft.prediction.model_copy(update={"peak_memory_mb": needed}))
            if limits.in_memory(found.prediction):
                break
        self.slower[draft.names[0]] = found.prediction.seconds / max(draft.prediction.seconds, 1e-9)
        return found

    def _tried(self, draft: Draft, smaller: int, limits: Limits) -> Draft:
        trained, reasons = draft.trained, draft.reasons
        changes: dict[str, object] = {}
        if smaller > 1:
            tokens = max(1, draft.measured.micro_batch_tokens // smaller)
            changes["training.micro_batch_tokens"] = tokens
            why = "Batches go through the model in pieces, so that memory is enough; the gradient is the same."
            reasons += (seen("training.micro_batch_tokens", tokens, why, "docs/recipe.md"),)
        trained = trained.replace(changes)
        measured = self.measure(trained, draft.prepared, None)
        shorter, prediction = in_time(trained, measured, seen_pace(measured, self._pace(draft)), limits, _resident())
        reasons = tuple(fewer_epochs(reason, shorter, limits) for reason in reasons)
        if draft.recipe.training.precision == "auto":
            changes["training.precision"] = measured.precision
            why = "The faster number format for this model on this machine."
            reasons += (seen("training.precision", measured.precision, why, "docs/speed.md"),)
        recipe = draft.recipe.replace(changes | {"training.epochs": shorter.training.epochs})
        return Draft(recipe, shorter, reasons, draft.prepared, measured, prediction)


def _with_prediction(draft: Draft) -> Recipe:
    return draft.recipe.replace({"prediction": draft.prediction.model_dump(mode="json")})


def _resident() -> int:
    """Bytes that this process has now."""
    return int(psutil.Process().memory_info().rss)
