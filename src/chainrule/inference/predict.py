"""Predictions of a model over encoded rows: sorted by length, one batch at a time, no logits kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chainrule.core.artifact import MANIFEST, Artifact
from chainrule.core.recipe import read_recipe
from chainrule.core.task import Predictions, Read, Task
from chainrule.data.batch import by_length, collate, with_common
from chainrule.data.encode import Encoded
from chainrule.errors import ModelError, Problem, Where
from chainrule.inference.ensemble import Ensemble, members_of
from chainrule.inference.runtimes import load_graph
from chainrule.kernels import native
from chainrule.models.accelerate import accelerate
from chainrule.models.adapters import has_adapters, plain_model, without_adapters
from chainrule.models.load import load_classifier, load_language_model, load_processor, load_saved, load_tokenizer
from chainrule.models.place import weights_hash
from chainrule.system.device import choose_device, has_bfloat16
from chainrule.system.progress import Bar
from chainrule.tasks.suited import suited

BATCH_TOKENS = 4096
COMMON_TOKENS = 2**20  # of rows with sequences in common, which tasks read a few at a time


@dataclass(frozen=True)
class Forward:
    """How rows become logits: the model with its padding and number format."""

    model: Any
    pad_id: int
    pad_left: bool
    device: torch.device
    precision: str

    def autocast(self) -> Any:
        """bfloat16 matrix products inside, when `precision` says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model with all that is needed to use it."""

    artifact: Artifact
    task: Task
    tokenizer: Any
    forward: Forward

    def encode(self, inputs: Mapping[str, Sequence[str]], targets: np.ndarray | None = None) -> Encoded:
        """Tokenise as training did, in the order of fields that training used."""
        manifest = self.artifact.manifest
        ordered = {name: inputs[name] for name in manifest.inputs}
        encoded: Encoded = self.task.encode(self.tokenizer, ordered, targets, manifest.max_length)
        return encoded

    def predict(self, encoded: Encoded, bar: Bar | None = None) -> Predictions:
        """Predictions for every row, in the order of the rows."""
        return said_of(self.forward, encoded, self.task, bar)


def load_predictor(artifact: Artifact, *, device: str = "auto", precision: str | None = None) -> Predictor:
    """Load an artifact for prediction.

    Args:
        precision: "float32" or "bfloat16"; None for the number format it was trained in where this machine has it.

    Raises:
        ModelError: a file of the artifact is damaged, or says something else than the others.
    """
    runtime = artifact.manifest.runtime
    if runtime == "none":
        loads = f"one that loads in {', '.join(artifact.manifest.loads_in)} alone"
        todo, where = "Use the artifact that it was made from.", Where(file=str(artifact.path))
        raise ModelError("Chainrule does not run this model.", [Problem("a model that it runs", loads, todo, where)])
    task = task_of_artifact(artifact)
    _check_inputs(artifact, task)
    if runtime == "ensemble":
        return _load_ensemble(artifact, task, device, precision)
    tokenizer = (load_processor if task.sees else load_tokenizer)(str(artifact.path))
    place = choose_device(device if runtime == "torch" else "cpu")
    wanted = precision or artifact.manifest.recipe.get("training", {}).get("precision", "float32")
    precision = "bfloat16" if wanted == "bfloat16" and has_bfloat16(place) else "float32"
    if runtime != "torch":
        graph = load_graph(artifact.path, runtime, precision, task.head)
        left = getattr(tokenizer, "padding_side", "right") == "left"
        forward = Forward(graph, int(getattr(tokenizer, "pad_token_id", 0) or 0), left, place, "float32")
        return Predictor(artifact, task, tokenizer, forward)
    held = artifact.manifest.recipe.get("strategy", {}).get("name") == "qlora"
    model = load_saved(artifact.path, task.head, base_name(artifact), held_on=place if held else None)
    if not (task.writes or task.makes_vectors) and model.config.num_labels != len(
        task.outputs(artifact.manifest.labels)
    ):
        raise _contradiction(artifact, "labels", f"{model.config.num_labels} labels as in config.json")
    model = model.to(place).eval()
    if has_adapters(model):
        require_same_base(artifact)
    if not native.must_build():  # compiling takes longer than a few predictions
        accelerate(plain_model(model), place)
    return Predictor(artifact, task, tokenizer, forward_of(model, tokenizer, place, precision))


def _load_ensemble(artifact: Artifact, task: Task, device: str, precision: str | None) -> Predictor:
    """The members as one model, which reads what the first of them reads."""
    artifacts, weights = members_of(artifact)
    members = [load_predictor(member, device=device, precision=precision) for member in artifacts]
    first = members[0]
    model = Ensemble(first.forward.model.config, members, weights, task.target.kind).eval()
    forward = replace(first.forward, model=model, device=torch.device("cpu"), precision="float32")
    return Predictor(artifact, task, first.tokenizer, forward)


def task_of_artifact(artifact: Artifact) -> Task:
    """The task as the artifact's recipe and its model make it.

    Raises:
        RecipeError: there is no such task, or it has no such options.
        ModelError: the artifact's config.json is missing or damaged.
    """
    return suited(artifact.manifest.task, task_options(artifact), str(artifact.path))


def task_options(artifact: Artifact) -> dict[str, Any]:
    """What the recipe of an artifact says of its task."""
    task = artifact.manifest.recipe.get("task")
    options = task.get("options") if isinstance(task, dict) else None
    return options if isinstance(options, dict) else {}


def _check_inputs(artifact: Artifact, task: Task) -> None:
    """Refuse a manifest that names fields which its task does not have."""
    inputs, names = artifact.manifest.inputs, {field.name for field in task.inputs}
    if not inputs or len(set(inputs)) < len(inputs) or not names.issuperset(inputs):
        raise _contradiction(artifact, "inputs", f"inputs of {task.name}: {', '.join(sorted(names))}")


def _contradiction(artifact: Artifact, field: str, expected: str) -> ModelError:
    got = repr(getattr(artifact.manifest, field))[:200]
    where = Where(file=str(artifact.path / MANIFEST), field=field)
    problem = Problem(expected, got, "Take a copy of the artifact that is whole, or train again.", where)
    return ModelError("The manifest contradicts the model beside it.", [problem])


def base_name(artifact: Artifact) -> str:
    """The model that an artifact was made from, as it can be loaded: the manifest has no paths, the run has."""
    run = artifact.run_folder
    if run is None:
        return artifact.manifest.base_model
    return read_recipe(run / "resolved.yaml").model.name


@contextmanager
def untuned(predictor: Predictor) -> Iterator[Forward]:
    """Inside, the Forward of a model without a fresh head as it was before step one.

    Raises:
        ModelError: the base model cannot be found, or it is not the one that was trained.
    """
    forward = predictor.forward
    if has_adapters(forward.model):
        with without_adapters(forward.model) as base:
            yield replace(forward, model=base)
        return
    artifact = predictor.artifact
    require_same_base(artifact)
    seed = int(artifact.manifest.recipe.get("seed", 0))
    name, tokenizer, structure = base_name(artifact), predictor.tokenizer, artifact.structure
    head = predictor.task.head
    if predictor.task.makes_vectors:
        model = load_classifier(name, tokenizer, (), "", structure, seed=seed, head=head)
    else:
        model = load_language_model(name, tokenizer, structure, seed=seed, head=head)
    yield replace(forward, model=model.to(forward.device).eval())


def require_same_base(artifact: Artifact) -> None:
    """Refuse another model of the same name than the one that was fine-tuned.

    Raises:
        ModelError: it is another, or there is none.
    """
    name, known = base_name(artifact), artifact.manifest.base_sha256
    found = weights_hash(name) if known is not None else None
    if found != known:
        problem = Problem(
            where=Where(file=str(artifact.path)),
            expected=f"the base model {name!r} with weights of SHA-256 {known}",
            got=found or "none on this machine",
            todo="Put the model it was trained from back in place.",
        )
        raise ModelError("The base model is not the one that this artifact was made from.", [problem])


def forward_of(model: Any, tokenizer: Any, device: torch.device, precision: str) -> Forward:
    """The Forward of a model and the tokenizer, or image processor, it was loaded with.

    Raises:
        ModelError: the tokenizer has tokens that the model has not.
    """
    if not hasattr(tokenizer, "get_vocab"):  # an image processor
        return Forward(model, 0, False, device, precision)
    highest, rows = max(tokenizer.get_vocab().values(), default=0), len(model.get_input_embeddings().weight)
    if highest >= rows:
        where, todo = Where(file=str(model.name_or_path), field="model.name"), "Take both from the same model."
        problem = Problem(f"tokens with numbers below {rows:,}, as the model has", f"{highest:,}", todo, where)
        raise ModelError("The tokenizer is not of this model.", [problem])
    return Forward(model, int(tokenizer.pad_token_id or 0), tokenizer.padding_side == "left", device, precision)


def predict_encoded(forward: Forward, encoded: Encoded, read: Read, bar: Bar | None = None) -> Predictions:
    """Predictions for every row, in the order of the rows.

    Memory beside the model: one batch of logits, and per row what `Predictions` holds.
    """
    parts, places = [], []
    with evaluating(forward.model), torch.inference_mode(), forward.autocast():
        alone = encoded.shared is None
        batches = by_length(encoded.lengths, BATCH_TOKENS) if alone else with_common(encoded, COMMON_TOKENS)
        for rows in batches:
            batch = collate(encoded, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)
            parts.append(read(forward.model, batch, encoded))
            places.append(rows)
            if bar is not None:
                bar.advance(len(rows))
    return Predictions.joined(parts).take(np.argsort(np.concatenate(places)))


def said_of(forward: Forward, encoded: Encoded, task: Task, bar: Bar | None = None) -> Predictions:
    """Predictions for every row, in the order of the rows; with targets, what the task makes of all together."""
    read = predict_encoded(forward, encoded, task.read, bar)
    return read if task.conclude is None or encoded.targets is None else task.conclude(encoded, read)


def with_references(forward: Forward, encoded: Encoded, task: Task, bar: Bar | None = None) -> Encoded:
    """Rows with what a model says of them before step one, where the task asks for it.

    Args:
        forward: of the model as it is before step one.
    """
    if task.reference is None:
        return encoded
    found = predict_encoded(forward, encoded, task.reference, bar).values
    return replace(encoded, references=np.asarray(found, dtype=np.float32))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
