"""Search for a better recipe, and go on with a search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from chainrule.api.entry import Rows, default_model, set_environment
from chainrule.core.engine import Engine
from chainrule.core.recipe import Recipe
from chainrule.core.request import Flags, asked_recipe
from chainrule.core.study import Study
from chainrule.errors import Problem, RecipeError, Where
from chainrule.system.files import refuse_existing
from chainrule.system.progress import Display, Quiet

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def search(
    source: Rows | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path,
    how: Mapping[str, Any],
    space: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    display: Display | None = None,
    **flags: Unpack[Flags],
) -> Study:
    """Try many recipes, train the best whole, and judge it once on rows that nothing was chosen by.

    Args:
        source, recipe, settings, flags: as in `train`: what all trials have in common.
        out: the study's folder, which must not exist.
        space: dotted keys with their choices or ranges, or a YAML file of them; None for the task's own.
        how: `budget` of all of it ("30m", "2h", "90s"), and if wanted `trials` (at most), `sampler` (tpe, cmaes, gp,
            nsga2, random), `pruner` (median, hyperband, none), `storage` (an Optuna RDB URL; by default a file in the
            study's folder); `engine` (an Engine, whose workers make trials at the same time).

    Raises:
        UserError: the recipe, the space, the budget, the storage, the data or the output path is wrong.
        StoppedError: Ctrl-C or SIGTERM; `resume_search` goes on.
    """
    set_environment()
    refuse_existing(Path(out))
    chosen = asked_recipe("search", source, recipe, flags, settings, default_model)
    from chainrule.core.recipe import Spec, parse_options
    from chainrule.hpo.optuna_study import Settings
    from chainrule.hpo.search import begin_search
    from chainrule.hpo.space import default_space, read_space
    from chainrule.tasks.suited import task_of

    others = {name: value for name, value in how.items() if name not in ("budget", "engine")}
    asked = {"seconds": seconds_of(how.get("budget", "")), **others}
    goes = parse_options(Settings, Spec(name="search", options=asked), "search", "search")
    if space is None:
        found: Mapping[str, Any] = default_space(chosen, task_of(chosen), with_structure=goes.is_multiple)
    elif isinstance(space, Mapping):
        found = space
    else:
        found = read_space(Path(space), chosen).model_dump(mode="json")["parameters"]
    begin_search(chosen, found, goes, Path(out))
    return _go(Path(out), source, display or Quiet(), how.get("engine"))


def _go(folder: Path, source: Rows | None, display: Display, engine: Engine | None) -> Study:
    from chainrule.hpo.search import Search

    if engine is None:
        return Search(folder, source, display).go()
    from chainrule.scaling.trials import search_with_ray

    return search_with_ray(folder, source, engine.workers, display)


def resume_search(
    study: str | Path | Study,
    source: Rows | None = None,
    *,
    display: Display | None = None,
    engine: Engine | None = None,
) -> Study:
    """Go on with a search that was stopped or killed; what is there is not made again.

    Args:
        source: the rows again, for a search that was given an object instead of a path.
        engine: whose workers make trials at the same time; None for this process.

    Raises:
        UserError: there is no such study, its data has gone, or another process works on it.
    """
    set_environment()
    from chainrule.hpo.search import require_study

    folder = study.path if isinstance(study, Study) else Path(study)
    require_study(folder)
    return _go(folder, source, display or Quiet(), engine)


def seconds_of(budget: str) -> float:
    """30m, 1.5h or 90s in seconds.

    Raises:
        RecipeError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", str(budget).lower())
    if found is None or not float(found[1]):
        problem = Problem("a time such as 30m, 2h or 90s", repr(budget), "Change --budget.", Where(field="budget"))
        raise RecipeError("The budget cannot be read.", [problem])
    return float(found[1]) * _UNITS[found[2]]
