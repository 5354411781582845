"""Ensembles: models that stay whole and answer together. Slower by as many times as there are members.

The mean of probabilities (Lakshminarayanan et al., 2017, section 2.4), or with weights that are fitted on validation
rows: of classes the shares of a mixture, found by expectation maximisation (Dempster et al., 1977), which raises the
likelihood of the labels with every step; of numbers the least squares without negative weights (Breiman, 1996, Stacked
Regressions, section 2). Members were not trained on these rows. Whether the weights are better than equal ones is
judged out of fold (Wolpert, 1992, Stacked Generalization): on each fifth of the rows by those fitted on the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.optimize import nnls

from chainrule.core.artifact import Artifact
from chainrule.core.recipe import Section
from chainrule.core.task import Predictions
from chainrule.data.batch import Batch
from chainrule.data.encode import Encoded
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.inference.ensemble import KINDS, MEMBERS, SETTINGS, probabilities
from chainrule.inference.predict import Predictor, load_predictor, predict_encoded
from chainrule.merging.base import refused
from chainrule.models.adapters import has_adapters
from chainrule.models.crf import Tagger
from chainrule.system.files import write_json

STEPS = 500  # of expectation maximisation
NEAR = 1e-9  # change of all weights at which it ends
TINY = 1e-12  # a probability that stands for none
FOLDS = 5
DEVIATIONS = 1.96  # of the mean, for a 95 % interval


class Options(Section):
    """`weights`: "equal", "stacking" (fitted on validation rows), or the shares themselves, in the models' order.

    Where stacking is not shown to be better out of fold, the weights are equal.
    """

    weights: Literal["equal", "stacking"] | tuple[float, ...] = "equal"


class Together:
    """Takes models of any architecture that read the same tokens."""

    needs_base = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def weights_of(self, members: Sequence[Predictor], rows: Encoded) -> tuple[list[float], str]:
        """The weight of each member, and why these.

        Args:
            rows: of validation.

        Raises:
            RecipeError: weights that do not suit the members, or a task for which none can be fitted.
        """
        given = self.options.weights
        if given == "equal":
            return equal(len(members)), "equal"
        if given == "stacking":
            said, kind = [said_of_rows(member, rows) for member in members], members[0].task.target.kind
            return chosen(said, np.asarray(rows.targets), kind)
        shares = [float(share) for share in given]
        if len(shares) != len(members) or min(shares) < 0 or sum(shares) <= 0:
            raise refused(f"{len(members)} weights, none negative", ", ".join(map(str, shares)), "weights")
        return [share / sum(shares) for share in shares], "as given"


def equal(members: int) -> list[float]:
    """The weights of a plain mean."""
    return [1 / members] * members


def read_members(artifacts: Sequence[Artifact]) -> list[Predictor]:
    """Load models that can answer together.

    Raises:
        RecipeError: fewer than two.
        ModelError: other tasks, labels, fields or tokens than the first has, adapters, or a task without such logits.
    """
    if len(artifacts) < 2:
        problem = Problem("two models or more", str(len(artifacts)), "Name others, too.")
        raise RecipeError("There is nothing to put together.", [problem])
    members = [load_predictor(artifact, device="cpu") for artifact in artifacts]
    first, problems = members[0], []
    for member in members:
        for name in ("task", "labels", "inputs"):
            mine, its = (getattr(each.artifact.manifest, name) for each in (first, member))
            if mine != its:
                problems.append(_problem(member, f"the {name} {str(mine)[:120]}, as the first has", str(its)[:120]))
        if member.task.target.kind not in KINDS:
            problems.append(_problem(member, f"a task of {', '.join(KINDS)}", member.task.name))
        if has_adapters(member.forward.model):
            problems.append(_problem(member, "a model that is whole (chainrule export --to hf)", "adapters"))
        if getattr(member.forward.model, "crf", None) is not None and isinstance(member.forward.model, Tagger):
            problems.append(_problem(member, "probabilities of each word by itself", "a chain over tags"))
        if _reads(member) != _reads(first):
            problems.append(_problem(member, "the tokens, or images, that the first reads", "others"))
    if problems:
        raise ModelError("These models cannot answer together.", problems)
    return members


def said_of_rows(member: Predictor, rows: Encoded) -> np.ndarray:
    """(n, labels) probabilities, or (n, 1) numbers, in the order of the rows."""
    kind = member.task.target.kind
    if kind == "spans" or rows.sequences is not None:
        expected = "rows with one set of probabilities each"
        raise refused(expected, "words, or windows of long texts", "weights")

    def read(model: torch.nn.Module, batch: Batch, encoded: Encoded) -> Predictions:
        said = probabilities(model(**batch.inputs).logits.float(), kind)
        return Predictions(said.cpu().numpy(), np.ones(len(said)))

    return np.asarray(predict_encoded(member.forward, rows, read).values, dtype=np.float64)


def chosen(said: Sequence[np.ndarray], targets: np.ndarray, kind: str) -> tuple[list[float], str]:
    """Fitted weights where they are better than equal ones out of fold, by the whole of a 95 % interval; and why."""
    gains = out_of_fold(said, targets, kind)
    mean, slack = float(gains.mean()), DEVIATIONS * float(gains.std(ddof=1)) / len(gains) ** 0.5
    what = "squared error" if kind == "number" else "log-likelihood"
    told = f"{mean:+.4f} of {what} a row out of fold, 95 % {mean - slack:+.4f} to {mean + slack:+.4f}"
    if mean - slack > 0:
        return stacked(said, targets, kind), f"stacked, better than equal ones by {told}"
    return equal(len(said)), f"equal; stacking is not shown to be better ({told})"


def out_of_fold(said: Sequence[np.ndarray], targets: np.ndarray, kind: str) -> np.ndarray:
    """(n,) by how much each row is answered better with weights fitted on the other folds than with equal ones."""
    folds = np.random.default_rng(0).permutation(len(targets)) % FOLDS
    gains = np.zeros(len(targets))
    for fold in range(min(FOLDS, len(targets))):
        inside, outside = folds == fold, folds != fold
        weights = stacked([each[outside] for each in said], targets[outside], kind)
        some = [each[inside] for each in said]
        fitted, plain = (_goodness(some, w, targets[inside], kind) for w in (weights, equal(len(said))))
        gains[inside] = fitted - plain
    return gains


def _goodness(said: Sequence[np.ndarray], weights: Sequence[float], targets: np.ndarray, kind: str) -> np.ndarray:
    """(n,) log-likelihoods, or squared errors below zero."""
    if kind == "number":
        mixed = sum(weight * each[:, 0] for weight, each in zip(weights, said, strict=True))
        return np.asarray(-((mixed - targets) ** 2))
    logs = np.log(np.maximum(_likely(said, targets, kind) @ np.asarray(weights), TINY))
    return np.asarray(logs.reshape(len(targets), -1).sum(1))


def _likely(said: Sequence[np.ndarray], targets: np.ndarray, kind: str) -> np.ndarray:
    """The probability that each member gave to what was seen: (n, members), of several labels (n × labels, members)."""
    if kind == "classes":
        return np.stack([np.where(targets > 0.5, each, 1 - each).ravel() for each in said], 1)
    return np.stack([each[np.arange(len(targets)), targets] for each in said], 1)


def stacked(said: Sequence[np.ndarray], targets: np.ndarray, kind: str) -> list[float]:
    """The weights that suit the targets best."""
    if kind == "number":
        found, _ = nnls(np.stack([each[:, 0] for each in said], 1), targets.astype(np.float64))
        return [float(weight) for weight in found]
    return mixture(_likely(said, targets, kind))


def mixture(likely: np.ndarray) -> list[float]:
    """The shares of a mixture that make what was seen likeliest.

    Args:
        likely: (n, members), the probability that each member gave to what was seen.
    """
    likely = np.maximum(likely, TINY)
    shares = np.full(likely.shape[1], 1 / likely.shape[1])
    for _ in range(STEPS):
        parts = shares * likely
        after = (parts / parts.sum(1, keepdims=True)).mean(0)
        if np.abs(after - shares).max() < NEAR:
            break
        shares = after
    return [float(share) for share in shares]


def write_ensemble(members: Sequence[Predictor], weights: Sequence[float], folder: Path, bound: Bound) -> Written:
    """Copies of the members and their weights, in an empty folder."""
    hashes = []
    for place, member in enumerate(members):
        shutil.copytree(member.artifact.path, folder / MEMBERS / str(place))
        hashes.append(member.artifact.manifest.weights_sha256)
    write_json(folder / SETTINGS, {"members": hashes, "weights": list(weights)})
    return Written("ensemble", ("chainrule",), SETTINGS, bound=bound)


def best_of(members: Sequence[Predictor], rows: Encoded) -> tuple[Predictor, list[float]]:
    """The member that is best on validation, and the metric of each."""
    task = members[0].task
    metrics = [task.measure(rows.targets, member.predict(rows)) for member in members]
    ranks = [task.rank({"loss": 0.0, **found}) for found in metrics]
    best = members[ranks.index(max(ranks))]
    return best, [found[task.primary_metric] for found in metrics]


def _reads(member: Predictor) -> object:
    """What decides which numbers a row becomes."""
    tokenizer = member.tokenizer
    if member.task.sees:
        return {name: value for name, value in tokenizer.to_dict().items() if name != "image_processor_type"}
    return tokenizer.get_vocab(), tuple(tokenizer.model_input_names), tokenizer.padding_side, member.forward.pad_id


def _problem(member: Predictor, expected: str, got: str) -> Problem:
    todo = "Put fine-tunes for one task together that read the same tokens."
    return Problem(expected, got, todo, Where(file=str(member.artifact.path)))
