"""The models of a server, by their names."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chainrule.core.artifact import Artifact
from chainrule.errors import ModelError, Problem, Where
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.inference.size import held_bytes
from chainrule.models.save import weights_file
from chainrule.serving.refusal import RefusedError

Mark = tuple[int, int, int]


@dataclass(eq=False)
class Served:
    """A model under the name that requests know it by.

    Attributes:
        predictor: while the model is not in memory, all but its weights.
        loaded: when first, in seconds since 1970.
        size: bytes that its weights take in memory.
        mark: of the file with its weights, as it was loaded.
        retry: where it could not be loaded again, when that is tried next, by `time.monotonic`.
    """

    name: str
    predictor: Predictor
    loaded: int
    size: int
    mark: Mark | None = None
    retry: float = 0.0

    @property
    def in_memory(self) -> bool:
        """Whether its weights are there."""
        return self.predictor.forward.model is not None

    @property
    def task(self) -> str:
        return self.predictor.task.name

    @property
    def kind(self) -> str:
        """The kind of what is predicted."""
        return self.predictor.task.target.kind

    @property
    def chats(self) -> bool:
        """Whether it answers conversations."""
        return self.predictor.task.converses

    def about(self) -> dict[str, object]:
        """What `/v1/models` says of it: nothing of the rows it was trained on."""
        manifest = self.predictor.artifact.manifest
        return {
            "id": self.name,
            "object": "model",
            "created": self.loaded,
            "owned_by": "chainrule",
            "task": manifest.task,
            "labels": list(manifest.labels),
            "max_length": manifest.max_length,
            "runtime": manifest.runtime,
            "weights_sha256": manifest.weights_sha256,
            "in_memory": self.in_memory,
            "bytes": self.size,
        }


def places_of(artifacts: Sequence[str]) -> dict[str, Path]:
    """The folder of each of FOLDER or NAME=FOLDER, as it was named, by the name of its model.

    Raises:
        ModelError: there is no artifact, or two have the same name.
    """
    found: dict[str, Path] = {}
    for given in artifacts:
        name, path = named(given)
        name = name or _name_of(Artifact.read(path).path)
        if name in found:
            problem = Problem("a name of its own for each model", f"{name!r} twice", "Name them: NAME=FOLDER.")
            raise ModelError("Two models have the same name.", [problem])
        found[name] = path
    return found


def load(name: str, artifact: Artifact) -> Served:
    """Load an artifact under a name; raises as `load_predictor`."""
    mark = mark_of(artifact)
    predictor = load_predictor(artifact)
    return Served(name, predictor, int(time.time()), held_bytes(predictor), mark)


def mark_of(artifact: Artifact) -> Mark | None:
    """By which a file with weights is known to be the same; None for those of other engines, and for none."""
    file = weights_file(artifact.path)
    if not file.is_file():
        return None
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def named(given: str) -> tuple[str, Path]:
    """The name, or "", and the folder of what the command line says."""
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        return "", Path(given)
    if not name:
        problem = Problem("NAME=FOLDER", given, "Write a name before the equals sign.", Where(field="artifact"))
        raise ModelError("The model has no name.", [problem])
    return name, Path(path)


def _name_of(folder: Path) -> str:
    whole = folder.resolve()
    return whole.parent.name if whole.name == "artifact" else whole.name


def choose(models: Mapping[str, Served], name: str | None, usable: Sequence[Served], what: str) -> Served:
    """The model that a request means.

    Args:
        name: as the request says it; None where it does not.
        usable: those that can do what is asked.
        what: what is asked, for the message.

    Raises:
        RefusedError: there is no such model, it cannot do this, or one must be named.
    """
    if name is None:
        if len(usable) == 1:
            return usable[0]
        names = ", ".join(served.name for served in usable)
        told = f"Several models can do this: {names}. Name one as `model`." if usable else f"No model here {what}."
        raise RefusedError(
            422 if usable else 404, told, code="model_required" if usable else "unsupported", param="model"
        )
    if name not in models:
        told = f"There is no model {name[:100]!r} here. There is: {', '.join(models)}."
        raise RefusedError(404, told, code="model_not_found", param="model")
    if models[name] not in usable:
        told = f"The model {name!r} does not: its task is {models[name].task}. What is asked needs a model that {what}."
        raise RefusedError(422, told, code="unsupported", param="model")
    return models[name]
