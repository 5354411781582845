"""The verbs: each is one import and one call. Importing this module loads nothing heavy."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from chainrule.core.artifact import Artifact, Run
from chainrule.core.parsing import merge
from chainrule.core.recipe import Data, Recipe, parse_options, parse_recipe, read_recipe
from chainrule.core.report import CheckReport, EvaluationReport, GradientReport, RateReport, Reproduction
from chainrule.core.request import Flags, WritingFlags, asked_recipe, field_changes, free_folder
from chainrule.errors import ModelError, OutputError, Problem, RecipeError, Where
from chainrule.system.files import free_path
from chainrule.system.progress import Display, Quiet
from chainrule.system.telemetry import turn_off_telemetry
from chainrule.system.threads import wait_briefly

SHOWN = ("catalog", "tasks", "strategies", "optimizers", "schedules", "losses", "regularisers", "averages")
Rows = Any  # a path, a name, a pandas frame, a datasets.Dataset, or a dict of split -> one of these


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
    _set_environment()
    from chainrule.data.load import load
    from chainrule.tasks import find_task

    known = find_task(task)
    changes = {
        "data.source": _shown(source),
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


def train(
    source: Rows | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    display: Display | None = None,
    **flags: Unpack[Flags],
) -> Run:
    """Fine-tune a pretrained model and judge it against cheap baselines.

    `train("reviews.csv", model="minilm", fields={"text": "review", "label": "stars"}, out="runs/reviews")`

    Args:
        source: as in `check`; None takes the recipe's `data.source`.
        recipe: a Recipe, or the path of a recipe file; None starts from the defaults.
        out: the run folder to make; by default runs/<model>-<data>, numbered if it exists.
        settings: any recipe keys, dotted, that override the recipe, e.g. {"training.patience": 2}.
        flags: the most used settings by a short name of their own.

    Raises:
        UserError: the recipe, the data, the model or the output path is wrong.
        TypeError: there is no such setting.
    """
    began = time.perf_counter()
    _set_environment()
    chosen = asked_recipe("train", source, recipe, flags, settings, _default_model)
    from chainrule.hpo import auto
    from chainrule.hpo.folds import train_with_folds
    from chainrule.training.run import train_recipe

    rows = chosen.data.source if source is None else source
    folder = Path(out) if out is not None else free_folder(chosen)
    carry_out = train_recipe if chosen.training.folds is None else train_with_folds
    if chosen.strategy.name == auto.NAME:
        carry_out = auto.train_chosen
    return carry_out(chosen, rows, folder, display or Quiet(), began)


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
    _set_environment()
    chosen = asked_recipe("find_learning_rate", source, recipe, flags, settings, _default_model)
    from chainrule.hpo.auto import refuse_open
    from chainrule.training.range_test import Range, find_rate

    refuse_open(chosen, "find-lr")

    rows, page = chosen.data.source if source is None else source, None if out is None else Path(out)
    return find_rate(chosen, rows, Range(*tried), page, display or Quiet())


def resume(run: str | Path | Run, source: Rows | None = None, *, display: Display | None = None) -> Run:
    """Go on with a training that was stopped or killed, from its newest checkpoint.

    On the same machine the result is, to the last bit, that of a run without interruption.

    Args:
        run: the run folder.
        source: the rows again, for a run that was given an object instead of a path.

    Raises:
        UserError: there is no such run, its data or its model has changed, or another process works on it.
    """
    began = time.perf_counter()
    _set_environment()
    from chainrule.hpo.folds import has_folds, resume_with_folds
    from chainrule.training.run import resume_run

    folder = run.path if isinstance(run, Run) else Path(run)
    go_on = resume_with_folds if has_folds(folder) else resume_run
    return go_on(folder, source, display or Quiet(), began)


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
    _set_environment()
    from chainrule.hpo.folds import refuse_again
    from chainrule.training.run import reproduce_run

    first = run.path if isinstance(run, Run) else Path(run)
    refuse_again(first)
    again = Path(out) if out is not None else free_path(first.with_name(f"{first.name}-again"))
    return reproduce_run(first, source, again, display or Quiet(), began)


def evaluate(
    model: str | Path | Run | Artifact,
    source: Rows | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    on_bad_row: Literal["stop", "skip"] | None = None,
    display: Display | None = None,
) -> EvaluationReport:
    """Score a fine-tuned model and its baselines on the same rows, and say whether it is better.

    Args:
        model: a run folder or an artifact folder.
        source: labelled data; None takes what the run was trained on.
        split: by default "test", or all rows of a new single file.
        limit: look at the first rows only.
        on_bad_row: by default what the model was trained with.

    Raises:
        UserError: no such model, or the data is wrong.
    """
    _set_environment()
    from chainrule.evaluation.artifact import evaluate_artifact, keep_report
    from chainrule.evaluation.report import write_report

    artifact = _artifact(model)
    data = _run_source(artifact) if source is None else source
    bad = on_bad_row or artifact.manifest.recipe.get("data", {}).get("on_bad_row", "stop")
    if bad not in ("stop", "skip"):
        problem = Problem("stop or skip", repr(bad), "Choose one of the two.", Where(field="on_bad_row"))
        raise RecipeError(f"There is no way to treat bad rows called {bad!r}.", [problem])
    spec = Data(source=_shown(data), fields=dict(fields or {}), on_bad_row=bad)
    report = evaluate_artifact(artifact, data, spec, split=split, limit=limit, display=display or Quiet())
    try:
        if keep_report(artifact, report) is not None and artifact.run_folder is not None:
            write_report(artifact.run_folder)
    except OutputError as error:  # the work is done; that it cannot be kept is no reason to lose it
        (display or Quiet()).say(f"warning: the evaluation is not kept in the run folder. {error}")
    return report


def predict(
    model: str | Path | Run | Artifact,
    source: Rows | None = None,
    *,
    text: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    out: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
    top: int | None = None,
    display: Display | None = None,
    **writing: Unpack[WritingFlags],
) -> list[dict[str, Any]] | int:
    """Label new rows, rank them, or write replies to them.

    Args:
        source: a file; its columns are kept and predicted_label and predicted_score put beside them; for entities
            predicted_entities (and predicted_tags of words); for questions predicted_answer, predicted_start and
            predicted_score; for items of queries or users predicted_score and predicted_rank; for replies
            predicted_text and predicted_finished (ended by `max_new_tokens`); for vectors predicted_vector.
        text: instead of a file one text, several, or columns: {"text_a": […], "text_b": […]}, for questions
            {"question": […], "context": […]}, and to be ranked {"query": […], "item": […]}.
        out: where to write; the file appears whole or not at all. Vectors alone go into .npy or .safetensors.
        top: of a model that ranks items for users: so many of the best for each user that the file names, chosen from
            all items that lie beside it.
        writing: `max_new_tokens` (default 256), `beams` (default 1), `temperature` (default 0: the most likely token
            each time), `top_p` (default 1) and `seed`.

    Returns:
        The rows, or their number when they were written to `out`.

    Raises:
        UserError: no such model, the input cannot be read, or the output exists.
    """
    _set_environment()
    from chainrule.inference.predict import load_predictor
    from chainrule.inference.ranks import best_items
    from chainrule.inference.rows import open_rows, predict_file, predict_texts, predicted_chunks, recommend_file

    if (source is None) == (text is None):
        problem = Problem(expected="a file or a text", got="neither or both", todo="Give one of the two.")
        raise RecipeError("Nothing to predict, or two things at once.", [problem])
    if text is not None and out is not None:
        problem = Problem(expected="a file to write the predictions of", got="a text", todo="Leave out `out`.")
        raise RecipeError("Only the predictions of a file are written to a file.", [problem])
    if text is not None and top is not None:
        problem = Problem(expected="a file of users", got="a text", todo="Leave out `top`.")
        raise RecipeError("The best items are chosen for the users of a file.", [problem])
    artifact = _artifact(model)
    how = _writing(artifact, writing)
    predictor = load_predictor(artifact)
    if top is not None and out is not None:
        return recommend_file(predictor, source, Path(out), top, fields or {}, display or Quiet())
    if top is not None:
        return [row for _, rows in best_items(predictor, source, top, fields or {})[1] for row in rows]
    if text is not None:
        texts = [text] if isinstance(text, str) else text
        return predict_texts(predictor, texts if isinstance(texts, Mapping) else {"text": list(texts)}, how)
    if out is not None:
        return predict_file(predictor, source, Path(out), fields or {}, display or Quiet(), how)
    chunks = predicted_chunks(predictor, open_rows(predictor, source, fields or {}), writing=how)
    return [row for _, rows in chunks for row in rows]


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
    _set_environment()
    from chainrule.evaluation.gradients import check_model

    return check_model(model, batch, kernels=kernels, seed=seed, display=display or Quiet())


def show(what: str | Path, run: str | Path | Run | None = None) -> dict[str, Any]:
    """Look at a run or artifact folder, at the "gradients" of a run, or at what there is to choose from: one of SHOWN.

    Args:
        run: the run whose gradients are to be shown; it must have been watched.

    Raises:
        UserError: there is no such thing.
    """
    _set_environment()
    if what == "gradients" or run is not None:
        from chainrule.evaluation.layers import describe_gradients

        return describe_gradients(what, run)
    if what == "catalog":
        from chainrule.data.catalog import list_datasets
        from chainrule.models.catalog import list_models
        from chainrule.models.scratch import describe

        return {"models": [*list_models(), *describe()], "data": list_datasets()}
    if what in SHOWN:
        from chainrule.hpo.auto import description
        from chainrule.training.shelves import rows_of

        rows = rows_of(str(what))
        return {str(what): [*rows, description()] if what == "strategies" else rows}
    if not os.path.exists(what):  # noqa: PTH110  (unlike Path.exists it takes a name too long for no file)
        problem = Problem(
            where=Where(file=str(what)),
            expected=f"a run folder, an artifact folder, or one of {', '.join(SHOWN)}",
            got="no such path",
            todo="Check the spelling.",
        )
        raise ModelError(f"There is nothing to show at {what}.", [problem])
    path = Path(what)
    if (path / "recipe.yaml").is_file():
        return Run(path).contents()
    return {"artifact": Artifact.read(path).manifest.model_dump(mode="json")}


def _default_model(task: str) -> str:
    from chainrule.tasks import find_task

    return find_task(task).default_model


def _writing(artifact: Artifact, options: Mapping[str, Any]) -> Any:
    """The typed options of `predict` for replies; other tasks have none."""
    from chainrule.core.recipe import Spec, parse_options
    from chainrule.inference.generate import Writing
    from chainrule.tasks import find_task

    given = {name: value for name, value in options.items() if value is not None}
    task = find_task(artifact.manifest.task)
    if given and not task.writes:
        problem = Problem("a model that writes replies", task.name, f"Leave out {', '.join(given)}.")
        raise RecipeError("This model writes no text.", [problem])
    return parse_options(Writing, Spec(name="text", options=given), "predict")


def _set_environment() -> None:
    """What the libraries read when they are loaded, so it must come before their imports."""
    turn_off_telemetry()
    wait_briefly()


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _artifact(model: str | Path | Run | Artifact) -> Artifact:
    if isinstance(model, Artifact):
        return model
    return model.artifact if isinstance(model, Run) else Artifact.read(Path(model))


def _run_source(artifact: Artifact) -> str:
    folder = artifact.run_folder
    recipe = read_recipe(folder / "recipe.yaml") if folder else None
    if recipe is None or recipe.data.source is None:
        problem = Problem(expected="labelled data", got="nothing", todo="Name it: chainrule evaluate MODEL DATA")
        raise RecipeError("This artifact does not lie in its run, so the data must be named.", [problem])
    return recipe.data.source
