"""The models that are to become one: read, compared, scored with other weights, written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chainrule.core.artifact import Artifact
from chainrule.core.task import LOWER_IS_BETTER
from chainrule.data.encode import Encoded
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.graph import merged
from chainrule.inference.predict import Predictor, base_name, load_predictor, require_same_base
from chainrule.merging.base import Weights
from chainrule.models.folder import WEIGHTS
from chainrule.models.load import is_pretrained, load_classifier, load_language_model
from chainrule.models.save import save_model


@dataclass(frozen=True)
class Members:
    """Fine-tunes of one base, for the same task and labels.

    Attributes:
        first: the first of them, in float32; its model takes whatever weights are looked at.
        weights: of all of them, adapters merged, in float32.
    """

    artifacts: tuple[Artifact, ...]
    first: Predictor
    weights: tuple[Weights, ...]

    @classmethod
    def read(cls, artifacts: Sequence[Artifact]) -> Members:
        """Load them.

        Raises:
            RecipeError: fewer than two.
            ModelError: other tasks, labels, bases or shapes than the first has.
        """
        if len(artifacts) < 2:
            problem = Problem("two models or more", str(len(artifacts)), "Name others, too.")
            raise RecipeError("There is nothing to merge.", [problem])
        problems = []
        for other in artifacts[1:]:
            for name in ("runtime", "task", "labels", "inputs", "base_sha256"):
                mine, its = (getattr(artifact.manifest, name) for artifact in (artifacts[0], other))
                if mine != its:
                    problems.append(_differs(other, name, mine, its))
        if artifacts[0].manifest.runtime != "torch":
            problems.append(_differs(artifacts[0], "runtime", "torch", artifacts[0].manifest.runtime))
        if problems:
            raise ModelError("These models cannot become one.", problems)
        read = [load_predictor(artifact, device="cpu", precision="float32") for artifact in artifacts]
        models = [merged(predictor) for predictor in read]
        weights = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
        shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in weights]
        for artifact, found in zip(artifacts[1:], shapes[1:], strict=True):
            for name in sorted(shapes[0].keys() | found.keys()):
                if shapes[0].get(name) != found.get(name):
                    problems.append(_differs(artifact, name, shapes[0].get(name), found.get(name)))
        if problems:
            raise ModelError("These models cannot become one.", problems)
        return cls(tuple(artifacts), read[0], tuple(weights))

    def predictor(self, place: int) -> Predictor:
        """One of them, as it was read."""
        return load_predictor(self.artifacts[place], device="cpu", precision="float32")

    def score(self, weights: Weights, rows: Encoded) -> float:
        """How good weights are by the task's own metric; what is better when low counts negative."""
        model = merged(self.first)
        model.load_state_dict(weights)
        changed = replace(self.first, forward=replace(self.first.forward, model=model))
        metric = self.first.task.primary_metric
        found = self.first.task.measure(rows.targets, changed.predict(rows))[metric]
        return -found if metric in LOWER_IS_BETTER else found

    def write(self, weights: Weights, folder: Path, bound: Bound) -> Written:
        """Write weights as a model like the first."""
        model, manifest, task = merged(self.first), self.first.artifact.manifest, self.first.task
        model.load_state_dict(weights)
        limit = None if task.head == "language-model" or task.sees else manifest.max_length
        loads_in = save_model(folder, model, self.first.tokenizer, max_length=limit, base=manifest.base_model)
        return Written("torch", loads_in, WEIGHTS, bound=bound)


def base_weights(members: Members) -> Weights:
    """What they were fine-tuned from, without what was fresh then.

    Raises:
        ModelError: it cannot be found, or it is not the one.
    """
    predictor = members.first
    artifact, task = predictor.artifact, predictor.task
    require_same_base(artifact)
    name, structure, seed = base_name(artifact), artifact.structure, int(artifact.manifest.recipe.get("seed", 0))
    if task.writes:
        model = load_language_model(name, predictor.tokenizer, structure, seed=seed, head=task.head)
    else:
        labels, kind = task.outputs(artifact.manifest.labels), task.problem_type
        model = load_classifier(name, predictor.tokenizer, labels, kind, structure, seed=seed, head=task.head)
    return {key: parameter.detach() for key, parameter in model.named_parameters() if is_pretrained(parameter)}


def _differs(artifact: Artifact, name: str, expected: object, got: object) -> Problem:
    where, todo = Where(file=str(artifact.path), field=name), "Merge fine-tunes of one model for one task."
    return Problem(f"{str(expected)[:120]}, as the first has", str(got)[:120], todo, where)
