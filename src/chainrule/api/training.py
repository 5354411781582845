"""Train, go on with a training, make it again, and find its learning rate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from chainrule.api.entry import Rows, default_model, set_environment
from chainrule.core.artifact import Run
from chainrule.core.engine import Engine
from chainrule.core.recipe import Recipe
from chainrule.core.report import RateReport, Reproduction
from chainrule.core.request import Flags, asked_recipe, free_folder
from chainrule.system.files import free_path
from chainrule.system.progress import Display, Quiet


def train(
    source: Rows | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    display: Display | None = None,
    engine: Engine | None = None,
    **flags: Unpack[Flags],
) -> Run:
    """Fine-tune a pretrained model and judge it against cheap baselines.

    `train("reviews.csv", model="minilm", fields={"text": "review", "label": "stars"}, out="runs/reviews")`

    Args:
        source: as in `check`; None takes the recipe's `data.source`.
        recipe: a Recipe, or the path of a recipe file; None starts from the defaults.
        out: the run folder to make; by default runs/<model>-<data>, numbered if it exists.
        settings: any recipe keys, dotted, that override the recipe, e.g. {"training.patience": 2}.
        engine: who does the work: Engine("ray", workers=2); None for this process, or those that torchrun has started.
        flags: the most used settings by a short name of their own.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong.
        TypeError: there is no such setting.
    """
    began = time.perf_counter()
    set_environment()
    chosen = asked_recipe("train", source, recipe, flags, settings, default_model)
    from chainrule.hpo import auto
    from chainrule.hpo.folds import train_with_folds
    from chainrule.system.processes import launched_world
    from chainrule.training.run import train_recipe

    rows, told = chosen.data.source if source is None else source, display or Quiet()
    if engine is not None:
        from chainrule.scaling.training import Asked, train_with_ray

        folder = free_folder(chosen) if out is None else Path(out)
        return train_with_ray(Asked(chosen, rows, folder, engine.workers), told)
    with launched_world() as world:
        folder = Path(world.told(lambda: str(free_folder(chosen) if out is None else out)))
        if not world.alone:
            return train_recipe(chosen, rows, folder, told if world.first else Quiet(), began, world)
    carry_out = train_recipe if chosen.training.folds is None else train_with_folds
    if chosen.strategy.name == auto.NAME:
        carry_out = auto.train_chosen
    return carry_out(chosen, rows, folder, told, began)


def find_learning_rate(
    source: Rows | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    tried: tuple[float, float, int] = (1e-7, 1.0, 100),
    settings: Mapping[str, Any] | None = None,
    display: Display | None = None,
    **flags: Unpack[Flags],
) -> RateReport:
    """Find out which learning rates suit a training, by a short one whose learning rate grows from step to step.

    Args:
        source, recipe, settings, flags: as in `train`.
        out: an HTML page with the plot; by default none is written.
        tried: the lowest learning rate, the highest, and the number of steps.

    Raises:
        UserError: the recipe, the data, the model, the range or the output path is wrong.
    """
    set_environment()
    chosen = asked_recipe("find_learning_rate", source, recipe, flags, settings, default_model)
    from chainrule.hpo.auto import refuse_open
    from chainrule.training.range_test import Range, find_rate

    refuse_open(chosen, "find-lr")

    rows, page = chosen.data.source if source is None else source, None if out is None else Path(out)
    return find_rate(chosen, rows, Range(*tried), page, display or Quiet())


def resume(
    run: str | Path | Run,
    source: Rows | None = None,
    *,
    display: Display | None = None,
    engine: Engine | None = None,
) -> Run:
    """Go on with a training that was stopped or killed, from its newest checkpoint.

    On the same machine the result is, to the last bit, that of a run without interruption.

    Args:
        run: the run folder.
        source: the rows again, for a run that was given an object instead of a path.
        engine: as in `train`; it need not be the one that the run began with.

    Raises:
        UserError: there is no such run, its data or its model has changed, or another process works on it.
    """
    began = time.perf_counter()
    set_environment()
    from chainrule.hpo.folds import has_folds, resume_with_folds
    from chainrule.system.processes import launched_world
    from chainrule.training.run import resume_run

    folder, told = run.path if isinstance(run, Run) else Path(run), display or Quiet()
    if engine is not None:
        from chainrule.scaling.training import Asked, train_with_ray

        return train_with_ray(Asked(None, source, folder, engine.workers), told)
    with launched_world() as world:
        if not world.alone:
            return resume_run(folder, source, told if world.first else Quiet(), began, world)
    go_on = resume_with_folds if has_folds(folder) else resume_run
    return go_on(folder, source, told, began)


def reproduce(
    run: str | Path | Run,
    source: Rows | None = None,
    *,
    out: str | Path | None = None,
    display: Display | None = None,
) -> Reproduction:
    """Make a finished run again, with every choice it made, and compare weights and events.

    Args:
        run: the run folder.
        source: the rows again, for a run that was given an object instead of a path.
        out: the folder of the second run; by default beside the first.

    Raises:
        UserError: there is no such run, it is not finished, it has folds, or its data or its model has changed.
    """
    began = time.perf_counter()
    set_environment()
    from chainrule.hpo.folds import refuse_again
    from chainrule.training.run import reproduce_run

    first = run.path if isinstance(run, Run) else Path(run)
    refuse_again(first)
    again = Path(out) if out is not None else free_path(first.with_name(f"{first.name}-again"))
    return reproduce_run(first, source, again, display or Quiet(), began)
