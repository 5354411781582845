"""The base objectives, and the losses they are made of: forward, loss per row, backward of the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from chainrule.core.recipe import Section, Spec
from chainrule.core.shelf import Entry, NoOptions, Part, take
from chainrule.core.task import Objective
from chainrule.data.batch import IGNORED
from chainrule.models.crf import CRF, negative_log_likelihood

BEGINS, ENDS = 1, 2  # what is learned of a token: an answer's beginning, its end, or their sum

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LogitsObjective:
    """The sum over rows, or over the tokens that have a target, of a loss between a model's logits and the targets.

    Attributes:
        row_loss: logits, targets -> (b,).
        divergence: how far apart two logits of the same rows are, in the loss's own unit -> (b,); 0 where they agree,
            and the same both ways.
    """

    row_loss: RowLoss
    divergence: RowLoss

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        logits, targets = with_target(logits_of(model, batch.inputs), batch.targets)
        return backward(self.row_loss(logits, targets).sum()), len(targets)


@dataclass(frozen=True)
class ChainObjective:
    """The sum over sequences of −log p of their tags; the count is that of the words."""

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        output = model(**batch.inputs)
        logits = output.logits[:, -batch.targets.shape[1] :].float()
        kept = batch.targets != IGNORED
        words = kept.sum(1)
        some = words > 0  # a window may have no word of its own
        order = torch.argsort(~kept[some], dim=1, stable=True)[:, : int(words.max())]  # words first, as they stand
        picked = logits[some].gather(1, order[..., None].expand(-1, -1, logits.shape[-1]))
        tags = batch.targets[some].gather(1, order).clamp_min(0)
        return backward(negative_log_likelihood(picked, tags, words[some], output.chain).sum()), int(words.sum())


def with_target(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (b, labels) and targets as they are; of (s, t, labels) and (s, t) those of the tokens with a target.

    A trained prompt stands before the tokens, and has no targets.
    """
    if logits.dim() == 2:
        return logits, targets
    kept = targets != IGNORED
    return logits[:, -targets.shape[1] :][kept], targets[kept]


def logits_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits (b, labels) or (s, t, labels) in float32."""
    logits: torch.Tensor = model(**inputs).logits.float()
    return logits


@dataclass(frozen=True)
class AnswerObjective:
    """The sum over windows of the cross-entropy of where an answer begins and of where it ends, the mean of the two.

    Devlin et al. (2019), BERT, section 4.2.
    """

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        losses = answer_losses(ends_of(model, batch.inputs, batch.targets), batch.targets)
        return backward(losses.sum()), len(losses)


def ends_of(model: Any, inputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Logits (s, t, 2) of an answer's beginning and its end at each token in float32; −∞ where targets are IGNORED."""
    output = model(**inputs)
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
    return logits.masked_fill((targets == IGNORED)[..., None], -math.inf)


def answer_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(s,) the loss of each window.

    Args:
        logits: (s, t, 2) of `ends_of`.
        targets: (s, t), BEGINS and ENDS added at one token each of a window, IGNORED where no answer can be.
    """
    marks = targets.clamp_min(0)
    wanted = torch.stack([(marks & BEGINS).argmax(1), (marks & ENDS).argmax(1)], dim=-1)
    return functional.cross_entropy(logits, wanted, reduction="none").mean(-1)


def backward(total: torch.Tensor) -> torch.Tensor:
    """Add the gradients of a summed loss, and return it without its graph."""
    with torch.autocast(total.device.type, enabled=False):  # backward keeps the types that forward chose
        total.backward()  # type: ignore[no-untyped-call]
    return total.detach()


class ClassWeights(Section):
    """With `balanced` each class weighs 1 / its frequency, 1 in the mean over rows."""

    class_weights: Literal["none", "balanced"] = "none"


class Smoothing(Section):
    """`label_smoothing` is the share of the target that all classes get alike: Szegedy et al. (2016), section 7."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class Focus(Section):
    """`gamma` 0 is cross-entropy; the larger, the less does count what is right already."""

    gamma: float = Field(default=2.0, ge=0)


class CrossEntropyOptions(ClassWeights, Smoothing):
    """Both."""


class FocalOptions(ClassWeights, Focus):
    """Both."""


class BinaryFocalOptions(Section):
    """`gamma` as for classes; `alpha` weighs labels that are there, 1 − alpha those that are not; null weighs none."""

    gamma: float = Field(default=2.0, ge=0)
    alpha: float | None = Field(default=None, gt=0, lt=1)


class HuberOptions(Section):
    """Errors below `delta` count by their square, above it by their size; in standard deviations of the targets."""

    delta: float = Field(default=1.0, gt=0)


def _token_cross_entropy(options: Smoothing) -> RowLoss:
    smoothing = options.label_smoothing
    return lambda logits, wanted: functional.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none")


def _token_focal(options: Focus) -> RowLoss:
    return lambda logits, wanted: _focused(functional.cross_entropy(logits, wanted, reduction="none"), options.gamma)


def _cross_entropy(options: CrossEntropyOptions, targets: np.ndarray) -> RowLoss:
    weights = _class_weights(options, targets)

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        smoothing, weight = options.label_smoothing, weights(logits)
        return functional.cross_entropy(logits, wanted, weight=weight, label_smoothing=smoothing, reduction="none")

    return row_loss


def _focal(options: FocalOptions, targets: np.ndarray) -> RowLoss:
    """Lin et al. (2017), Focal Loss for Dense Object Detection, equation 5, with softmax and the class's weight."""
    weights = _class_weights(options, targets)

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        weight = weights(logits)
        return _focused(losses, options.gamma) * (1.0 if weight is None else weight[wanted])

    return row_loss


def _binary_cross_entropy(options: NoOptions, targets: np.ndarray) -> RowLoss:
    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)

    return row_loss


def _binary_focal(options: BinaryFocalOptions, targets: np.ndarray) -> RowLoss:
    """Lin et al. (2017), equation 5, label by label; the mean over the labels of each row."""
    alpha = options.alpha

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        weight = 1.0 if alpha is None else alpha * wanted + (1 - alpha) * (1 - wanted)
        return (_focused(losses, options.gamma) * weight).mean(-1)

    return row_loss


def _focused(losses: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 − p)^gamma · losses, p = exp(−losses) being the probability of what is right."""
    missing = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)  # a power of 0 has no finite slope
    return missing.pow(gamma) * losses


def _mean_squared_error(options: NoOptions, targets: np.ndarray) -> RowLoss:
    variance = _variance(targets)

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (logits.squeeze(-1) - wanted).square() / variance

    return row_loss


def _huber(options: HuberOptions, targets: np.ndarray) -> RowLoss:
    """Huber (1964), Robust Estimation of a Location Parameter, of errors in standard deviations of the targets."""
    deviation = math.sqrt(_variance(targets))

    def row_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        error = (logits.squeeze(-1) - wanted) / deviation
        return functional.huber_loss(error, torch.zeros_like(error), delta=options.delta, reduction="none")

    return row_loss


CLASS_LOSSES = {
    "cross-entropy": Entry(CrossEntropyOptions, _cross_entropy, "softmax cross-entropy over classes"),
    "focal": Entry(FocalOptions, _focal, "cross-entropy that turns to the rows that are still wrong"),
}
TOKEN_LOSSES = {
    "cross-entropy": Entry(Smoothing, _token_cross_entropy, "softmax cross-entropy over the tags of words"),
    "focal": Entry(Focus, _token_focal, "cross-entropy that turns to the words that are still wrong"),
    CRF: Entry(NoOptions, lambda options: None, "a conditional random field over the tags of neighbouring words"),
}
ANSWER_LOSSES = {
    "cross-entropy": Entry(NoOptions, lambda options: AnswerObjective(), "of where an answer begins and where it ends"),
}
LABEL_LOSSES = {
    "binary-cross-entropy": Entry(NoOptions, _binary_cross_entropy, "sigmoid cross-entropy, the mean over labels"),
    "focal": Entry(BinaryFocalOptions, _binary_focal, "the same, turning to the labels that are still wrong"),
}
NUMBER_LOSSES = {
    "mean-squared-error": Entry(NoOptions, _mean_squared_error, "squared error over the variance of the targets"),
    "huber": Entry(HuberOptions, _huber, "squared for small errors, absolute for large ones"),
}


def class_objective(loss: Spec, targets: np.ndarray) -> LogitsObjective:
    """One class a row. Logits (b, classes), targets (b,) int64."""
    return LogitsObjective(take_loss(CLASS_LOSSES, loss)(targets), softmax_divergence)


def token_objective(loss: Spec, targets: Any) -> Objective:
    """One class for each token that has a target. Logits (s, t, classes), targets (s, t) int64."""
    row_loss = take_loss(TOKEN_LOSSES, loss)()
    return ChainObjective() if row_loss is None else LogitsObjective(row_loss, softmax_divergence)


def answer_objective(loss: Spec, targets: Any) -> AnswerObjective:
    """One beginning and one end for each window. Logits (s, t, 2), targets (s, t) int64."""
    made: AnswerObjective = take_loss(ANSWER_LOSSES, loss)()
    return made


def label_objective(loss: Spec, targets: np.ndarray) -> LogitsObjective:
    """Any number of labels a row. Logits and targets (b, labels)."""
    return LogitsObjective(take_loss(LABEL_LOSSES, loss)(targets), sigmoid_divergence)


def number_objective(loss: Spec, targets: np.ndarray) -> LogitsObjective:
    """A number a row. Logits (b, 1), targets (b,); in units of the training targets' spread, whatever their own."""
    return LogitsObjective(take_loss(NUMBER_LOSSES, loss)(targets), _scaled_distance(_variance(targets)))


def take_loss(losses: Mapping[str, Entry], loss: Spec) -> Part:
    """The loss of a recipe among those of a task, whose first is "default".

    Raises:
        RecipeError: another loss, or options it does not have.
    """
    name = next(iter(losses)) if loss.name == "default" else loss.name
    return take(losses, Spec(name=name, options=loss.options), "loss")


def softmax_divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(KL(p‖q) + KL(q‖p)) / 2 of two softmax distributions: (b, classes) twice -> (b,)."""
    logs = first.log_softmax(-1), second.log_softmax(-1)
    return 0.5 * ((logs[0].exp() - logs[1].exp()) * (logs[0] - logs[1])).sum(-1)


def sigmoid_divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The same of independent labels, the mean over labels: (b, labels) twice -> (b,)."""
    return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(-1)


def _scaled_distance(variance: float) -> RowLoss:
    """The same of two normal distributions whose variance is half the targets', as squared error takes them to be."""

    def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).squeeze(-1).square() / variance

    return divergence


def _class_weights(options: ClassWeights, targets: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """Logits (b, classes) -> the weight of each class, or None for no weights; a class without rows weighs 1."""
    if options.class_weights == "none":
        return lambda logits: None
    counts = np.bincount(targets)
    weights = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    known = torch.from_numpy(np.where(counts, weights, 1.0))
    return lambda logits: functional.pad(known, (0, logits.shape[-1] - len(known)), value=1.0).to(logits)


def _variance(targets: np.ndarray) -> float:
    return max(float(np.var(targets)), 1e-12)
