"""Use a fine-tuned model: judge it, and predict with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from chainrule.api.entry import Rows, artifact_of, name_of, set_environment, source_of
from chainrule.core.artifact import Artifact, Run
from chainrule.core.recipe import Data
from chainrule.core.report import EvaluationReport
from chainrule.core.request import PredictFlags
from chainrule.errors import OutputError, Problem, RecipeError, Where
from chainrule.system.progress import Display, Quiet


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
    set_environment()
    from chainrule.evaluation.artifact import evaluate_artifact, keep_report
    from chainrule.evaluation.report import write_report

    artifact = artifact_of(model)
    data = source_of(artifact) if source is None else source
    bad = on_bad_row or artifact.manifest.recipe.get("data", {}).get("on_bad_row", "stop")
    if bad not in ("stop", "skip"):
        problem = Problem("stop or skip", repr(bad), "Choose one of the two.", Where(field="on_bad_row"))
        raise RecipeError(f"There is no way to treat bad rows called {bad!r}.", [problem])
    spec = Data(source=name_of(data), fields=dict(fields or {}), on_bad_row=bad)
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
    **writing: Unpack[PredictFlags],
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
            each time), `top_p` (default 1) and `seed`; and for a file `engine` (an Engine, whose workers predict).

    Returns:
        The rows, or their number when they were written to `out`.

    Raises:
        UserError: no such model, the input cannot be read, or the output exists.
    """
    set_environment()
    from chainrule.inference.predict import load_predictor
    from chainrule.inference.ranks import best_items
    from chainrule.inference.rows import (
        answers_here,
        open_rows,
        predict_file,
        predict_texts,
        predicted_chunks,
        recommend_file,
    )

    if (source is None) == (text is None):
        problem = Problem(expected="a file or a text", got="neither or both", todo="Give one of the two.")
        raise RecipeError("Nothing to predict, or two things at once.", [problem])
    if text is not None and out is not None:
        problem = Problem(expected="a file to write the predictions of", got="a text", todo="Leave out `out`.")
        raise RecipeError("Only the predictions of a file are written to a file.", [problem])
    if text is not None and top is not None:
        problem = Problem(expected="a file of users", got="a text", todo="Leave out `top`.")
        raise RecipeError("The best items are chosen for the users of a file.", [problem])
    if writing.get("engine") is not None and (text is not None or top is not None):
        problem = Problem(expected="a file of rows", got="a text, or users", todo="Leave out `engine`.")
        raise RecipeError("Workers predict the rows of a file.", [problem])
    artifact, engine = artifact_of(model), writing.pop("engine", None)
    how = _writing(artifact, writing)
    predictor = load_predictor(artifact)
    if engine is not None:
        from chainrule.scaling.prediction import predict_with_ray

        target = None if out is None else Path(out)
        return predict_with_ray(predictor, source, target, fields or {}, (how, engine.workers), display or Quiet())
    if top is not None and out is not None:
        return recommend_file(predictor, source, Path(out), top, fields or {}, display or Quiet())
    if top is not None:
        return [row for _, rows in best_items(predictor, source, top, fields or {})[1] for row in rows]
    if text is not None:
        texts = [text] if isinstance(text, str) else text
        return predict_texts(predictor, texts if isinstance(texts, Mapping) else {"text": list(texts)}, how)
    answer = answers_here(predictor, how)
    if out is not None:
        return predict_file(predictor, source, Path(out), fields or {}, display or Quiet(), answer)
    chunks = predicted_chunks(predictor, open_rows(predictor, source, fields or {}), answer)
    return [row for _, rows in chunks for row in rows]


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
