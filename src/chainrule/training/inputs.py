"""What a run reads and where it runs: recorded when it begins, compared when it goes on or is made again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chainrule.core.artifact import Artifact
from chainrule.core.lists import Lists
from chainrule.core.recipe import Recipe
from chainrule.core.spans import Answers, Spans
from chainrule.errors import DataError, Problem, Where
from chainrule.kernels import native
from chainrule.models.scratch import first_weights_hash
from chainrule.system.device import environment
from chainrule.system.files import read_json, write_json
from chainrule.system.progress import Display
from chainrule.tasks.prepare import Prepared
from chainrule.training.job import Job

INPUTS, ENVIRONMENT = "inputs.json", "environment.json"


def record_inputs(folder: Path, job: Job, recipe: Recipe, prepared: Prepared) -> None:
    """Write inputs.json and environment.json into a run folder."""
    write_json(folder / INPUTS, _inputs(recipe, prepared))
    write_json(folder / ENVIRONMENT, _machine(job, recipe))


def _machine(job: Job, recipe: Recipe) -> dict[str, Any]:
    device = job.forward.device
    facts = environment(device, recipe.training.threads or 1) | _numerics(recipe, device)
    return facts | {"workers": job.world.size}


def workers_of(run: Path) -> int:
    """How many processes shared each batch when a run began."""
    return int(read_json(run / ENVIRONMENT).get("workers", 1))


def _inputs(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What the rows and the base model were when the run began."""
    rows = {name: _rows_hash(prepared, name) for name in prepared.dataset.splits}
    teachers = [Artifact.read(Path(path)).manifest.weights_sha256 for path in recipe.distillation.teachers]
    taught = {"teachers_sha256": teachers} if teachers else {}
    if prepared.unlabelled is not None:
        further, ids = prepared.unlabelled.hashes, prepared.unlabelled.encoded.ids
        taught["unlabelled_sha256"] = [_hash_of(further, ids)]
    return {"rows_sha256": rows, "base_sha256": first_weights_hash(recipe.model), **taught}


def _hash_of(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def _rows_hash(prepared: Prepared, name: str) -> str:
    """Of a split's inputs, and of its tokens and targets where they are read."""
    digest = hashlib.sha256(np.ascontiguousarray(prepared.dataset.splits[name].hashes).tobytes())
    if name in prepared.encoded:
        encoded = prepared.encoded[name]
        targets = encoded.targets.spans if isinstance(encoded.targets, Answers) else encoded.targets
        of_targets = (targets.offsets, targets.bounds) if isinstance(targets, Spans) else (targets,)
        of_targets = (targets.offsets, targets.numbers) if isinstance(targets, Lists) else of_targets
        pixels = None if encoded.pixels is None else encoded.pixels.values
        for array in (encoded.ids, encoded.offsets, pixels, *of_targets):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def refuse_changes(run: Path, recipe: Recipe, prepared: Prepared) -> None:
    """Make sure that rows and base model are those that a run began with.

    Raises:
        DataError: they are not.
    """
    before, now = read_json(run / INPUTS), _inputs(recipe, prepared)
    rows = before.get("rows_sha256")
    known = rows if isinstance(rows, dict) else {}
    changed = [name for name, found in now["rows_sha256"].items() if known.get(name) != found]
    problems = [
        Problem(
            where=Where(file=prepared.report.source, field=name),
            expected="the rows that the run began with",
            got="other rows",
            todo="Put the data back as it was, or train anew with --out.",
        )
        for name in changed
    ]
    if before.get("base_sha256") != now["base_sha256"]:
        begun, field = "base model", "model.name"
        for option, name in (("vectors", "word vectors"), ("pieces", "embeddings")):
            if recipe.model.options.get(option):
                begun, field = name, f"model.options.{option}"
        todo = f"Put the {begun} back as before, or train anew with --out."
        problems.append(Problem(f"the {begun} that the run began with", "other weights", todo, Where(field=field)))
    if before.get("teachers_sha256") != now.get("teachers_sha256"):
        todo, where = "Put the teachers back as before, or train anew with --out.", Where(field="distillation.teachers")
        problems.append(Problem("the teachers that the run began with", "other weights", todo, where))
    if before.get("unlabelled_sha256") != now.get("unlabelled_sha256"):
        todo, where = "Put the file back as it was, or train anew with --out.", Where(field="distillation.unlabelled")
        problems.append(Problem("the rows without labels that the run began with", "other rows", todo, where))
    if problems:
        raise DataError(f"What the run {run} reads has changed since it began.", problems)


def tell_changes(run: Path, job: Job, recipe: Recipe, display: Display) -> list[str]:
    """Say where the last digits may come out otherwise than they did, or would have; what has changed."""
    before, now = {"workers": 1, **read_json(run / ENVIRONMENT)}, _machine(job, recipe)
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        display.say(
            f"warning: {', '.join(changed)} changed since the run began ({ENVIRONMENT}): results may differ in the "
            "last digits."
        )
    return changed


def _numerics(recipe: Recipe, device: torch.device) -> dict[str, str]:
    """The number format, and which kernels there are."""
    on = recipe.training.accelerate and device.type == "cpu"
    kernels = ("compiled" if native.available() else "plain torch") if on else "off"
    return {"precision": recipe.training.precision, "kernels": kernels}
