"""Hand a fine-tuned model on: to other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainrule.api.entry import Rows, artifact_of, name_of, set_environment
from chainrule.core.artifact import Artifact, Run, Step
from chainrule.core.recipe import Data, Spec
from chainrule.errors import ChainruleError, NoSplitError, Problem, RecipeError
from chainrule.system.progress import Display, Quiet

PARITY_ROWS = 256


def export(
    model: str | Path | Run | Artifact,
    to: str,
    out: str | Path,
    *,
    data: Rows | None = None,
    limit: int = PARITY_ROWS,
    options: Mapping[str, Any] | None = None,
    display: Display | None = None,
) -> tuple[Artifact, Step]:
    """Write a fine-tuned model in another format, and make sure that it is still the same model.

    Both models read the same rows, and their outputs are compared in float32; a model that says something else is not
    put in place.

    Args:
        model: a run folder or an artifact folder.
        to: "hf", "onnx", "openvino", "gguf" or "torch-export".
        out: the folder to make.
        data: labelled rows to compare on; by default the test rows, or else the validation rows, of what it was trained
            on; where they cannot be read, rows of tokens drawn by chance.
        limit: so many rows at most.
        options: of the format, e.g. {"numbers": "q8_0"} for GGUF.

    Raises:
        UserError: there is no such model or format, this model does not go into it, or `out` exists.
        GateError: what was written says something else than the model; it was removed again.
    """
    set_environment()
    from chainrule.core.shelf import take
    from chainrule.evaluation.handover import hand_over
    from chainrule.exporters import EXPORTERS
    from chainrule.inference.predict import load_predictor
    from chainrule.system.files import refuse_existing

    told, folder = display or Quiet(), Path(out)
    exporter = take(EXPORTERS, Spec(name=to, options=dict(options or {})), "export", ("--to", "--set"))()
    refuse_existing(folder)
    parent = load_predictor(artifact_of(model), device="cpu", precision="float32")
    exporter.refuse(parent)
    rows = rows_to_compare(parent, data, limit, told)
    told.say(f"Writing {to} …")
    step = f"export --to {to}"
    manifest, done = hand_over(parent, folder, step, lambda place: exporter.write(parent, place), rows)
    return Artifact(folder, manifest), done


def rows_to_compare(predictor: Any, data: Rows | None, limit: int, display: Display) -> Any:
    """Labelled rows for the comparison: those named, or else of what the model was trained on, or None."""
    if data is None and source_or_none(predictor.artifact) is None:
        display.say("No rows are at hand: the models are compared on tokens drawn by chance (--data names real rows).")
        return None
    try:
        found = rows_of_split(predictor, data, "test", limit) or rows_of_split(predictor, data, "validation", limit)
    except ChainruleError as error:
        if data is not None:
            raise
        display.say(f"warning: the rows it was trained on cannot be read; tokens drawn by chance. {error}")
        return None
    if found is not None:
        display.say(f"Comparing on {len(found.encoded):,} rows of {found.data}.")
    return found


def rows_of_split(predictor: Any, data: Rows | None, split: str, limit: int | None = None) -> Any:
    """Labelled rows of a split of the data named, or of what the model was trained on; None where it has no such split.

    A file without splits that is named stands for each of them.
    """
    from chainrule.evaluation.artifact import labelled_rows
    from chainrule.evaluation.parity import Rows as Compared

    source = data if data is not None else source_or_none(predictor.artifact)
    if source is None:
        return None
    bad = predictor.artifact.manifest.recipe.get("data", {}).get("on_bad_row", "stop")
    try:
        name, done = labelled_rows(predictor, source, Data(source=name_of(source), on_bad_row=bad), split, limit)
    except NoSplitError:
        return None
    shown = os.path.basename(name_of(source))  # noqa: PTH119
    return Compared(shown if name == "all" else f"{shown}, {name}", done.split.inputs, done.encoded)


def rows_to_judge(predictor: Any, data: Rows | None) -> tuple[Any, Any]:
    """The validation rows, to choose by, and the test rows, to judge by.

    Raises:
        RecipeError: they are not two.
    """
    seen, judged = (rows_of_split(predictor, data, split) for split in ("validation", "test"))
    if seen is None or judged is None or seen.data == judged.data:
        wanted, todo = "data with a validation and a test split", "Name it: --data DATA"
        problem = Problem(wanted, "none, or only one of them", todo)
        raise RecipeError("There are no rows to choose by, or none to judge by.", [problem])
    return seen, judged


def source_or_none(artifact: Artifact) -> str | None:
    """The data that the run of an artifact was trained on, where it lies in its run and that was a path or a name."""
    from chainrule.core.recipe import read_recipe

    folder = artifact.run_folder
    return None if folder is None else read_recipe(folder / "recipe.yaml").data.source
