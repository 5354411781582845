"""The Artifact: a fine-tuned model on disk, and the Run that made it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chainrule.core.parsing import validation_problems
from chainrule.core.recipe import Clean, Spec, Structure
from chainrule.errors import ModelError, Problem, Where
from chainrule.system.files import read_json

FORMAT_VERSION = 1
MANIFEST = "chainrule.json"
EVENTS = "events.jsonl"
FOLDS = "folds"  # in a run that was cross-validated: a folder for each fold
ROWS = "rows.safetensors"  # hashes of the rows it was made with, and the recorded cut
REFERENCE = "reference.json"  # counts and moments of the validation rows: what is usual, for watching


# what runs the model here; ensemble: those that its members name; none: only other programs do
Runtime = Literal["torch", "onnx", "openvino", "ensemble", "none"]


class Parity(BaseModel):
    """How near a model is to the one it was made from, on the same rows, in float32 where both have that.

    Attributes:
        rows: how many were compared.
        data: what they are rows of; None for tokens drawn by chance, which have no targets.
        distance: the largest difference between any two outputs.
        largest: the largest output of the model it was made from.
        agreement: the share of rows of which both say the same; of numbers None.
        covered: the share of rows that both read as the same tokens, of which alone outputs are compared; None where
            both have the same vocabulary.
        metric: what both were scored by, with targets.
        before, after: the scores.
        difference, low, high: after less before, such that higher is better, with its 95 % interval, paired.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1)
    data: str | None = None
    distance: float
    largest: float
    agreement: float | None = None
    covered: float | None = None
    metric: str | None = None
    before: float | None = None
    after: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Speed(BaseModel):
    """How fast a model is beside the one it was made from: medians of turns, in the number formats they are used in.

    Attributes:
        rows_per_second: before and after, of rows sorted by length.
        milliseconds: before and after, of one row at a time: the median row.
        threads: of both.
        p95: before and after, milliseconds of one row at a time that 95 of 100 rows do not exceed.
        written: so many tokens were written for each row; None where rows were read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_per_second: tuple[float, float]
    milliseconds: tuple[float, float]
    threads: int
    p95: tuple[float, float] | None = None
    written: int | None = None

    @property
    def many(self) -> float:
        """How many times as fast it is with many rows."""
        return self.rows_per_second[1] / self.rows_per_second[0]

    @property
    def single(self) -> float:
        """How many times as fast it is with one row at a time."""
        return self.milliseconds[0] / self.milliseconds[1]


class Step(BaseModel):
    """What was done to a model after training: the command's words, the weights it was done to, what it cost.

    Attributes:
        speed: of both models in turn on this machine, where the step was to make it faster.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    parent_sha256: str
    parity: Parity
    speed: Speed | None = None


class Manifest(BaseModel):
    """chainrule.json: what an artifact is and where it came from. Names and hashes, never absolute paths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    chainrule_version: str
    task: str
    labels: tuple[str, ...]
    inputs: tuple[str, ...]
    fields: dict[str, str]
    max_length: int = Field(ge=1)
    base_model: str
    base_sha256: str | None = None
    parent: str | None = None
    recipe: dict[str, Any]
    metrics: dict[str, float]
    primary_metric: str
    data: dict[str, Any]
    loads_in: tuple[str, ...] = Field(min_length=1)
    weights_sha256: str
    runtime: Runtime = "torch"
    lineage: tuple[Step, ...] = ()

    @field_validator("recipe")
    @classmethod
    def _sections(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        """What is read of the recipe later must be there in its form."""
        for name in ("data", "model", "training", "strategy"):
            if not isinstance(recipe.get(name, {}), dict):
                raise ValueError(f"a mapping under {name}")
        try:
            Clean.model_validate(recipe.get("data", {}).get("clean", {}))
        except ValidationError:
            raise ValueError(f"true or false for {', '.join(Clean.model_fields)} under data.clean") from None
        try:
            Structure.model_validate(recipe.get("structure", {}))
        except ValidationError as error:
            problems = validation_problems(error, Structure, None, prefix="structure")
            raise ValueError("; ".join(f"{p.expected} under {p.where.field}" for p in problems)) from None
        return recipe


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
        values = read_json(file)
        problems = []
        if values.get("format_version") != FORMAT_VERSION:
            where = Where(file=str(file), field="format_version")
            got = f"format {values.get('format_version')!r}"[:80]
            todo = "Use the Chainrule version that wrote it, or train again."
            problems = [Problem(f"a manifest of format {FORMAT_VERSION}", got, todo, where)]
        else:
            try:
                return cls(path, Manifest.model_validate(values))
            except ValidationError as error:
                problems = validation_problems(error, Manifest, str(file))
        raise ModelError(f"The manifest {file} cannot be read.", problems)

    @property
    def clean(self) -> Clean:
        """The changes that were made to the texts before training, and must be made to every other text."""
        return Clean.model_validate(self.manifest.recipe.get("data", {}).get("clean", {}))

    @property
    def cutting(self) -> dict[str, Any]:
        """How a single file was cut, under the names of a recipe."""
        data = self.manifest.recipe.get("data", {})
        kinds = {"validation_fraction": float, "test_fraction": float, "cut_by": str, "time_column": str}
        return {name: data[name] for name, kind in kinds.items() if isinstance(data.get(name), kind)}

    @property
    def task(self) -> Spec:
        """The task with the options that it was trained with."""
        task = self.manifest.recipe.get("task")
        options = task.get("options") if isinstance(task, dict) else None
        return Spec(name=self.manifest.task, options=options if isinstance(options, dict) else {})

    @property
    def structure(self) -> Structure:
        """The changes that were made to the pretrained model before training."""
        return Structure.model_validate(self.manifest.recipe.get("structure", {}))

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
    def whole(self) -> Path | None:
        """The run folder that this one is a fold of, if it is one."""
        above = self.path.parent
        return above.parent if above.name == FOLDS and (above.parent / "resolved.yaml").is_file() else None

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON document that `train` printed. Empty for a run that did not finish."""
        file = self.path / "summary.json"
        return read_json(file) if file.is_file() else {}

    def events(self) -> Iterator[dict[str, Any]]:
        """Every step and epoch in order; a torn last line (a run killed while writing) is left out.

        Raises:
            ModelError: another line is no JSON.
        """
        file = self.path / EVENTS
        if not file.is_file():
            return
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith("\n"):
                    return
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    where = Where(file=str(file), line=number)
                    problem = Problem("an event as JSON", str(error)[:200], "Leave this line out.", where)
                    raise ModelError(f"The events of {self.path} cannot be read.", [problem]) from error

    def contents(self) -> dict[str, Any]:
        """What is in the folder by now: the summary, the evaluations, where the report lies."""
        evaluations = {
            file.stem: read_json(file) for file in sorted((self.path / "evaluations").glob("*.json")) if file.is_file()
        }
        report = self.path / "report.html"
        return {
            "finished": (self.path / "artifact").is_dir(),
            "summary": self.summary,
            "evaluations": evaluations,
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
