"""The Artifact: a fine-tuned model on disk, and the Run that made it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chainrule.core.recipe import Clean
from chainrule.errors import ModelError, Problem, Where

FORMAT_VERSION = 1
MANIFEST = "chainrule.json"
ROWS = "rows.safetensors"  # hashes of the rows it was made with, and the recorded cut


class Manifest(BaseModel):
    """chainrule.json: what an artifact is and where it came from. Names and hashes, never absolute paths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    chainrule_version: str
    task: str
    labels: tuple[str, ...]
    inputs: tuple[str, ...]
    fields: dict[str, str]
    max_length: int
    base_model: str
    base_sha256: str | None = None
    parent: str | None = None
    recipe: dict[str, Any]
    metrics: dict[str, float]
    primary_metric: str
    data: dict[str, Any]
    loads_in: tuple[str, ...]
    weights_sha256: str


@dataclass(frozen=True)
class Artifact:
    """A model folder with its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Read an artifact folder, or the artifact inside a run folder.

        Raises:
            ModelError: there is no artifact at `path`, or its manifest is damaged or too new.
        """
        if not os.path.isfile(path / MANIFEST) and os.path.isfile(path / "artifact" / MANIFEST):  # noqa: PTH113
            path = path / "artifact"
        file = path / MANIFEST
        if not os.path.isfile(file):  # noqa: PTH113  (unlike Path.is_file it takes a name too long for no file)
            raise _not_an_artifact(path)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(values, dict) and values.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"format {values.get('format_version')!r}")
            manifest = Manifest.model_validate(values)
        except (ValidationError, ValueError) as error:
            problem = Problem(
                where=Where(file=str(file)),
                expected=f"a manifest of format {FORMAT_VERSION}",
                got=str(error).splitlines()[0],
                todo="Use the Chainrule version that wrote it, or train again.",
            )
            raise ModelError(f"The manifest {file} cannot be read.", [problem]) from None
        return cls(path, manifest)

    @property
    def clean(self) -> Clean:
        """The changes that were made to the texts before training, and must be made to every other text."""
        return Clean.model_validate(self.manifest.recipe.get("data", {}).get("clean", {}))

    @property
    def run_folder(self) -> Path | None:
        """The run folder this artifact lies in, if it still does."""
        parent = self.path.parent
        return parent if (parent / "resolved.yaml").is_file() else None


@dataclass(frozen=True)
class Run:
    """A run folder: recipe.yaml, resolved.yaml, environment.json, events.jsonl, artifact/, report.html."""

    path: Path

    @property
    def artifact(self) -> Artifact:
        return Artifact.read(self.path / "artifact")

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON document that `train` printed. Empty for a run that did not finish."""
        file = self.path / "summary.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def events(self) -> Iterator[dict[str, Any]]:
        """Every step and epoch in order; a torn last line (a run killed while writing) is left out."""
        file = self.path / "events.jsonl"
        if not file.is_file():
            return
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)


def describe_folder(path: Path) -> dict[str, Any]:
    """What a run or artifact folder holds, as plain values.

    Raises:
        ModelError: it is neither.
    """
    if not (path / "recipe.yaml").is_file():
        return {"artifact": Artifact.read(path).manifest.model_dump(mode="json")}
    files = sorted(file for file in (path / "evaluations").glob("*.json") if file.is_file())
    report = path / "report.html"
    return {
        "finished": (path / "artifact").is_dir(),
        "summary": Run(path).summary,
        "evaluations": {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files},
        "report": str(report) if report.is_file() else None,
    }


def _not_an_artifact(path: Path) -> ModelError:
    todo = "Give the folder that `chainrule train --out` wrote."
    if not os.path.exists(path):  # noqa: PTH110
        got = "no such folder"
    elif (path / "recipe.yaml").is_file():
        got = "a run that has not finished: it has no artifact"
        todo = f"Go on with it: chainrule train --resume {path}"
    else:
        got = "a path without chainrule.json"
    problem = Problem(where=Where(file=str(path)), expected="a run folder or an artifact folder", got=got, todo=todo)
    return ModelError(f"There is no fine-tuned model at {path}.", [problem])
