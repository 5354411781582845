"""Look before training: at the data, and at the gradients of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.api.entry import Rows, name_of, set_environment
from chainrule.core.parsing import merge
from chainrule.core.recipe import parse_options, parse_recipe
from chainrule.core.report import CheckReport, GradientReport
from chainrule.core.request import field_changes
from chainrule.system.progress import Display, Quiet


def check(
    source: Rows,
    *,
    task: str = "text-classification",
    fields: Mapping[str, str] | None = None,
    model: str | None = None,
    max_length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    shown: int = 1,
) -> CheckReport:
    """Look at labelled data before anything is trained on it.

    Args:
        source: a file, a folder with split files, a data frame, a dataset, a catalog or hub name.
        fields: task field -> column, where the columns' names do not say it.
        model: also count tokens with this model's tokenizer.
        max_length: tell which rows are longer than this many tokens.
        settings: dotted keys of the recipe's `data` section, e.g. {"data.on_bad_row": "skip"}.
        shown: how many training rows to show with the tokens that are learned, where not every token is.

    Raises:
        DataError: the source cannot be read at all. Wrong rows are in the report.
    """
    set_environment()
    from chainrule.data.load import load
    from chainrule.tasks import find_task

    known = find_task(task)
    changes = {
        "data.source": name_of(source),
        "task": task,
        "model": {"name": model or known.default_model, "max_length": max_length},
        **field_changes(fields),
        **(settings or {}),
    }
    recipe = parse_recipe(merge({}, changes))
    dataset = load(source, recipe.data, known, options=parse_options(known.options, recipe.task, "task"))
    if model is None and max_length is None and (known.prepare_tokenizer is None or not dataset.report.ok):
        return dataset.report
    from chainrule.tasks.prepare import with_tokens
    from chainrule.tasks.suited import task_of

    return with_tokens(dataset, recipe, task_of(recipe), shown=shown).report


def check_gradients(
    model: Any, batch: Any = None, *, kernels: bool = False, seed: int = 0, display: Display | None = None
) -> GradientReport:
    """Compare the backward of every module of a model with its forward, by central differences in float64.

    Args:
        model: a catalog name, a model folder, a hub name, a run, an artifact, or a torch module.
        batch: the arguments of a torch module, by name or in order; None makes one up for a model that reads tokens.
        kernels: compare the CPU kernels on it as well, in float32 and bfloat16.
        seed: of the batch and of the directions.

    Raises:
        UserError: there is no such model, none of it is trainable, or a batch is needed.
    """
    set_environment()
    from chainrule.evaluation.gradients import check_model

    return check_model(model, batch, kernels=kernels, seed=seed, display=display or Quiet())
