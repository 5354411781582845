"""Losses on vectors of texts: what belongs together shall be near. The rows of a batch are each other's examples.

Every loss takes vectors of length one and gives a number for each row. Cosines are multiplied by `scale`, which is one
over a temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional

from chainrule.core.recipe import Section
from chainrule.core.shelf import Entry
from chainrule.errors import Problem, RecipeError, Where

SCALE = 20.0

# (b, s, d) vectors of the rows' texts, and what is known of the rows -> (b,) losses
VectorLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Nested(Section):
    """`dimensions`: the loss is the mean of those of the vectors' first so many numbers; null for all numbers alone.

    Kusupati et al. (2022), Matryoshka Representation Learning, equation 1 with equal weights.
    """

    dimensions: tuple[int, ...] | None = Field(default=None, min_length=1)


class RankingOptions(Nested):
    """`symmetric`: the texts that are found shall also find those that look for them."""

    scale: float = Field(default=SCALE, gt=0)
    symmetric: bool = False


class ScaleOptions(Nested):
    """`scale` is one over the temperature."""

    scale: float = Field(default=SCALE, gt=0)


class TripletOptions(Nested):
    """`margin`: how much nearer the positive shall be; `distance`: 1 − cosine, or the length of the difference."""

    margin: float = Field(default=0.3, gt=0)
    distance: Literal["cosine", "euclidean"] = "cosine"


@dataclass(frozen=True)
class Examples:
    """What the texts of a batch are to each other.

    Attributes:
        queries: (q, d).
        candidates: (c, d).
        positive: (q, c) bool, what shall be near.
        negative: (q, c) bool, what shall be far; neither of the two where nobody knows.
    """

    queries: torch.Tensor
    candidates: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor

    @property
    def cosines(self) -> torch.Tensor:
        """(q, c)."""
        return self.queries @ self.candidates.T


def examples_of(vectors: torch.Tensor, known: torch.Tensor) -> Examples:
    """Every row's first text against the positives and negatives of all rows, or against those of other labels.

    No negative of a row is a text that is the same as its own, as its positive, or as the positive of another row with
    the same first text.

    Args:
        vectors: (b, s, d): of an anchor, its positive, and any number of negatives; or of a text of a label, perhaps
            with another one (s is 1 or 2).
        known: (b, s) numbers that are the same for the same texts; or (b,) those of labels.
    """
    if known.dim() == 1:
        alone = torch.eye(len(known), dtype=torch.bool, device=known.device)
        same = known[:, None] == known
        positive = same & ~alone if vectors.shape[1] == 1 else same
        return Examples(vectors[:, 0], vectors[:, -1], positive, ~same)
    anchors, texts = known[:, 0], known[:, 1:].flatten()
    own = torch.eye(len(known), dtype=torch.bool, device=known.device)
    none = torch.zeros_like(own)
    positive = torch.stack([own, *[none] * (known.shape[1] - 2)], -1).flatten(1)
    same_anchor = (anchors[:, None] == anchors).double()
    belongs = same_anchor @ (known[:, 1][:, None] == texts).double() > 0
    negative = ~(belongs | (anchors[:, None] == texts))
    return Examples(vectors[:, 0], vectors[:, 1:].flatten(0, 1), positive, negative)


def _ranking(options: RankingOptions) -> VectorLoss:
    """−log of the share of exp(scale · cosine) that the positive has beside all negatives, in the batch's own.

    Henderson et al. (2017), Efficient Natural Language Response Suggestion for Smart Reply; van den Oord et al. (2018),
    Representation Learning with Contrastive Predictive Coding, equation 4. Of several positives the mean. The symmetric
    form is the mean with the loss of the positives that look for their anchors: Radford et al. (2021), CLIP, figure 3.
    """

    def one_way(vectors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        examples = examples_of(vectors, known)
        scores = options.scale * examples.cosines
        others = scores.masked_fill(~examples.negative, torch.finfo(scores.dtype).min).logsumexp(1, keepdim=True)
        losses = functional.softplus(others - scores).masked_fill(~examples.positive, 0.0)
        return losses.sum(1) / examples.positive.sum(1).clamp(min=1)

    def loss(vectors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        if not options.symmetric or known.dim() == 1:  # among labelled texts every text looks for every other
            return one_way(vectors, known)
        return (one_way(vectors, known) + one_way(vectors[:, [1, 0]], known[:, [1, 0]])) / 2

    return loss


def _triplet(options: TripletOptions) -> VectorLoss:
    """max(0, margin + distance to the positive − distance to the negative): Schroff et al. (2015), FaceNet.

    The negative is the nearest of the row's own where it has some, else of the batch; of several positives the farthest
    counts, as in Hermans et al. (2017), In Defense of the Triplet Loss, equation 5. A row that lacks one of the two
    gives 0. Where it stays at the margin, the vectors have become one: give own negatives, or take another loss.
    """

    def loss(vectors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        examples = examples_of(vectors, known)
        distances = 1 - examples.cosines
        if options.distance == "euclidean":  # of vectors of length one
            distances = (2 * distances).clamp(min=torch.finfo(distances.dtype).eps).sqrt()
        negative = examples.negative
        if known.dim() > 1 and known.shape[1] > 2:
            width = known.shape[1] - 1
            own = torch.eye(len(known), dtype=torch.bool, device=known.device).repeat_interleave(width, 1)
            negative = negative & own
        far = distances.masked_fill(~examples.positive, -torch.inf).amax(1)
        near = distances.masked_fill(~negative, torch.inf).amin(1)
        complete = examples.positive.any(1) & negative.any(1)
        gap = torch.where(complete, far, 0.0) - torch.where(complete, near, 0.0)
        return torch.where(complete, (options.margin + gap).clamp(min=0), 0.0)

    return loss


def _supervised(options: ScaleOptions) -> VectorLoss:
    """`contrastive_loss` of labelled texts; of pairs, both texts of all rows with the same anchor are of one class."""

    def loss(vectors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        labels = known if known.dim() == 1 else known[:, 0]
        texts = vectors[:, :2].transpose(0, 1)
        losses = row_losses(texts.flatten(0, 1), labels.repeat(len(texts)), 1 / options.scale)
        return losses.view(len(texts), -1).mean(0)

    return loss


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The sum over rows of the supervised contrastive loss: Khosla et al. (2020), equation 2.

    Of row i, with z the features at length one: the mean over the other rows p of its class of
    −log(exp(z_i · z_p / temperature) / Σ exp(z_i · z_a / temperature)), the sum being over all other rows a. A row
    that is alone in its class gives 0.

    Args:
        features: (b, d).
        labels: (b,) class of each row.
    """
    return row_losses(functional.normalize(features, dim=-1), labels, temperature).sum()


def row_losses(units: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """What `contrastive_loss` adds up: (b, d) of length one, (b,) -> (b,)."""
    alone = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (units @ units.T / temperature).masked_fill(alone, torch.finfo(units.dtype).min)
    positive = (labels[:, None] == labels) & ~alone
    logs = alike.log_softmax(1).masked_fill(~positive, 0.0)
    return -logs.sum(1) / positive.sum(1).clamp(min=1)


def _cosent(options: ScaleOptions) -> VectorLoss:
    """log(1 + Σ exp(scale · (cosine of j − cosine of i))) over the pairs of rows of which i has the higher score.

    Su (2022), CoSENT. It is one number for a batch, which each of its rows is told to have.
    """

    def loss(vectors: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cosines = options.scale * (vectors[:, 0] * vectors[:, 1]).sum(-1)
        gaps = (cosines[None] - cosines[:, None])[scores[:, None] > scores[None]]
        return torch.cat([gaps.new_zeros(1), gaps]).logsumexp(0).expand(len(scores))

    return loss


RELATION_LOSSES = {
    "multiple-negatives": Entry(RankingOptions, _ranking, "cross-entropy of the positive among the batch's texts"),
    "triplet": Entry(TripletOptions, _triplet, "the positive nearer than the nearest negative, by a margin"),
    "supervised-contrastive": Entry(ScaleOptions, _supervised, "cross-entropy of every text of a class in the batch"),
}
SCORE_LOSSES = {
    "cosent": Entry(ScaleOptions, _cosent, "cosines in the order of the scores, over all pairs of rows in the batch"),
}


def nested(loss: VectorLoss, dimensions: tuple[int, ...] | None) -> VectorLoss:
    """The mean of a loss over the vectors' first so many numbers, each time at length one."""
    if dimensions is None:
        return loss

    def of_parts(vectors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        if max(dimensions) > vectors.shape[-1] or min(dimensions) < 1:
            got, todo = ", ".join(map(str, dimensions)), "Correct them."
            where = Where(field="loss.options.dimensions")
            problem = Problem(f"dimensions from 1 to {vectors.shape[-1]}", got, todo, where)
            raise RecipeError("The model's vectors have not so many numbers.", [problem])
        parts = [loss(functional.normalize(vectors[..., :size], dim=-1), known) for size in dimensions]
        return torch.stack(parts).mean(0)

    return of_parts
