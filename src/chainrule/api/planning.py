"""Before a training: what it will take, and which one to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from chainrule.api.entry import Rows, default_model, name_of, set_environment
from chainrule.core.plan import PlanReport
from chainrule.core.recipe import Recipe, parse_recipe
from chainrule.core.request import Flags, asked_recipe, settled_keys
from chainrule.errors import Problem, RecipeError, Where
from chainrule.system.files import refuse_existing, write_text
from chainrule.system.progress import Display, Quiet

GOALS = ("quality", "speed", "size")


def plan(
    source: Rows,
    *,
    models: Sequence[str] = (),
    goal: Literal["quality", "speed", "size"] = "quality",
    limits: tuple[float | None, float | None] = (None, None),
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    display: Display | None = None,
    **flags: Unpack[Flags],
) -> PlanReport:
    """Recommend a training for these rows and this machine, and say what it will take.

    Args:
        source: as in `check`.
        models: to choose from, by name; by default that of the task.
        goal: what matters most.
        limits: minutes that the training may take, and gigabytes of memory; None for what there is.
        out: where to write the recipe, with its reasons; it must not exist. Nothing is written where nothing fits.
        settings, flags: as in `train`; what they set is kept.

    Raises:
        UserError: the data, a model, the recipe or the output path is wrong.
    """
    set_environment()
    if out is not None:
        refuse_existing(Path(out))
    minutes, gigabytes = limits
    _refuse_limits(goal, minutes, gigabytes)
    if models:
        flags["model"] = models[0]
    chosen = asked_recipe("plan", source, None, flags, settings, default_model)
    _refuse_folds(chosen)
    from functools import partial

    from chainrule.hpo.auto import refuse_open
    from chainrule.planning.limits import Limits
    from chainrule.planning.planner import Planner
    from chainrule.planning.recommend import Asked
    from chainrule.planning.written import written_recipe
    from chainrule.training.measure import measure
    from chainrule.training.run import prepare_rows

    refuse_open(chosen, "plan")
    shown = display or Quiet()
    settled = settled_keys(flags, settings)
    memory = None if gigabytes is None else gigabytes * 1024
    names = tuple(dict.fromkeys(models or [chosen.model.name]))
    asked = Asked(chosen, settled, names, goal, Limits(minutes, memory))
    prepare = partial(prepare_rows, source=source, display=Quiet())
    report = Planner(asked, prepare, measure, shown).plan()
    if out is not None and report.recipe is not None:
        recipe, name = parse_recipe(report.recipe), name_of(source)
        about = f"What `chainrule plan {name}` recommends for {report.goal}. {report.verdict}"
        top = (about, "Each reason stands above its key.")
        write_text(Path(out), written_recipe(recipe, report.reasons, top))
    return report


def _refuse_limits(goal: str, minutes: float | None, gigabytes: float | None) -> None:
    problems = []
    if goal not in GOALS:
        where = Where(field="goal")
        problems.append(Problem(f"one of {', '.join(GOALS)}", repr(goal), "Choose one of them with --goal.", where))
    for name, value in (("minutes", minutes), ("memory", gigabytes)):
        if value is not None and not 0 < value < float("inf"):
            todo = f"Give --{name} a number above 0, or leave it out."
            problems.append(Problem("a number above 0", f"{value:g}", todo, Where(field=name)))
    if problems:
        raise RecipeError("This cannot be planned for.", problems)


def _refuse_folds(recipe: Recipe) -> None:
    if recipe.training.folds is not None:
        todo = "Leave training.folds out; with k folds a training takes about k + 1 times as long."
        problem = Problem("one training", f"{recipe.training.folds} folds", todo, Where(field="training.folds"))
        raise RecipeError("plan works on one training.", [problem])
