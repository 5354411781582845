"""From one artifact to the next: written beside its place, loaded again, compared, and only then put there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chainrule.core.artifact import MANIFEST, REFERENCE, ROWS, Artifact, Manifest, Runtime, Speed, Step
from chainrule.evaluation.card import model_card
from chainrule.evaluation.parity import SAME, Bound, Rows, compare, compare_made_up, require
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.models.save import save_reader
from chainrule.system.files import atomic_folder, output_errors, refuse_existing, sha256, write_text
from chainrule.version import __version__

Time = Callable[[Artifact], Speed]


@dataclass(frozen=True)
class Written:
    """What was written of a model.

    Attributes:
        runtime: what runs it in Chainrule.
        loads_in: the libraries that load it without Chainrule.
        weights: the file that holds the weights, by its name in the folder.
        model: loads what was written, for the comparison, where nothing runs it in Chainrule.
        bound: how far it may be from the model before.
    """

    runtime: Runtime
    loads_in: tuple[str, ...]
    weights: str
    model: Callable[[], Any] | None = None
    bound: Bound = SAME


def hand_over(
    parent: Predictor,
    out: Path,
    step: str,
    write: Callable[[Path], Written],
    rows: Rows | None,
    time: Time | None = None,
) -> tuple[Manifest, Step]:
    """Write the next artifact, load it again, compare it with its parent, and put it in its place.

    Args:
        parent: in float32, where the comparison is to be exact.
        out: the folder to make.
        step: what is done, in the words of the command.
        write: writes the model into an empty folder.
        rows: what both are compared on; None for rows of chance.
        time: measures how fast both are, and refuses what is not fast enough.

    Returns:
        Its manifest, and what was measured.

    Raises:
        OutputError: `out` exists or cannot be written.
        GateError: it is farther from its parent than it may be. Nothing is left behind.
    """
    refuse_existing(out)
    with output_errors(out), atomic_folder(out) as folder:
        written = write(folder)
        if not (folder / "config.json").is_file():
            save_reader(folder, parent.forward.model.config, parent.tokenizer, parent.artifact.manifest.max_length)
        manifest = _manifest(parent.artifact.manifest, folder, written, ())
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        child = _loaded(parent, Artifact(folder, manifest), written)
        found = compare_made_up(parent, child) if rows is None else compare(parent, child, rows)
        require(found, written.bound, step)
        speed = None if time is None else time(Artifact(folder, manifest))
        done = Step(step=step, parent_sha256=parent.artifact.manifest.weights_sha256, parity=found, speed=speed)
        manifest = _manifest(parent.artifact.manifest, folder, written, (done,))
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        write_text(folder / "README.md", model_card(manifest, None))
        kept = (ROWS, REFERENCE) if written.bound is SAME else (ROWS,)  # another model finds other things usual
        for name in kept:
            if (parent.artifact.path / name).is_file():
                shutil.copyfile(parent.artifact.path / name, folder / name)
    return manifest, done


def _loaded(parent: Predictor, artifact: Artifact, written: Written) -> Predictor:
    if written.model is None:
        return load_predictor(artifact, precision=parent.forward.precision)
    forward = replace(parent.forward, model=written.model(), device=torch.device("cpu"))
    return replace(parent, artifact=artifact, forward=forward)


def _manifest(parent: Manifest, folder: Path, written: Written, lineage: tuple[Step, ...]) -> Manifest:
    changes: dict[str, Any] = {
        "chainrule_version": __version__,
        "parent": parent.weights_sha256,
        "loads_in": written.loads_in,
        "runtime": written.runtime,
        "weights_sha256": sha256(folder / written.weights),
        "lineage": (*parent.lineage, *lineage),
    }
    return parent.model_copy(update=changes)
