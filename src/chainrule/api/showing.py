"""Look at what is there: runs, artifacts, and the shelves to choose from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from chainrule.api.entry import set_environment
from chainrule.core.artifact import Artifact, Run
from chainrule.errors import ModelError, Problem, Where

SHOWN = (
    *("catalog", "tasks", "strategies", "optimizers", "schedules", "losses", "regularisers", "averages"),
    *("exporters", "compressors", "merges"),
)


def show(what: str | Path, run: str | Path | Run | None = None) -> dict[str, Any]:
    """Look at a run or artifact folder, at the "gradients" of a run, or at what there is to choose from: one of SHOWN.

    Args:
        run: the run whose gradients are to be shown; it must have been watched.

    Raises:
        UserError: there is no such thing.
    """
    set_environment()
    if what == "gradients" or run is not None:
        from chainrule.evaluation.layers import describe_gradients

        return describe_gradients(what, run)
    if what == "catalog":
        from chainrule.data.catalog import list_datasets
        from chainrule.models.catalog import list_models
        from chainrule.models.scratch import describe

        return {"models": [*list_models(), *describe()], "data": list_datasets()}
    if what in ("exporters", "compressors", "merges"):
        from chainrule.compressors import COMPRESSORS
        from chainrule.core import shelf
        from chainrule.exporters import EXPORTERS
        from chainrule.merging import MERGES

        known = {"exporters": EXPORTERS, "compressors": COMPRESSORS, "merges": MERGES}
        return {str(what): shelf.describe(known[str(what)])}
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
