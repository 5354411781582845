"""Queries with their candidates as token ids, the scores that a model gives them, and losses on these.

A row is as many sequences as it has candidates, each a pair of the query and one of them, read by a classifier with a
single output (a cross-encoder; Nogueira and Cho, 2019, Passage Re-ranking with BERT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from chainrule.core.lists import Lists
from chainrule.core.recipe import Spec
from chainrule.core.shelf import Entry, NoOptions
from chainrule.core.task import Objective, Predictions
from chainrule.data import encode as pairs
from chainrule.data.batch import Batch
from chainrule.data.encode import Encoded, joined, offsets_of
from chainrule.data.lists import ITEM, QUERY, candidates_of
from chainrule.tasks.objectives import backward, take_loss
from chainrule.tasks.reading import few_at_once

CHUNK_ROWS = 256  # lists that are texts at once
ListLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise each query with each of its candidates.

    Args:
        inputs: queries under "query", and their candidates under "item", as `candidates_of` reads them.
        targets: `Lists` of the candidates' relevances, or None.
        max_length: longer pairs are cut, the longer text of the two first; `full_lengths` has the longest of a row.
    """
    queries, cells = inputs[QUERY], inputs[ITEM]

    def pieces() -> Iterator[Encoded]:
        for start in range(0, len(queries), CHUNK_ROWS):
            few = slice(start, start + CHUNK_ROWS)
            lists = [candidates_of(cell)[1] for cell in cells[few]]
            counts = [len(texts) for texts in lists]
            firsts = [query for query, count in zip(queries[few], counts, strict=True) for _ in range(count)]
            both = {QUERY: firsts, ITEM: [text for texts in lists for text in texts]}
            flat = pairs.encode(tokenizer, both, None, max_length)
            longest = np.maximum.reduceat(flat.full_lengths, offsets_of(counts)[:-1])
            yield replace(flat, full_lengths=longest, sequences=offsets_of(counts))

    return replace(joined(pieces()), targets=targets)


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """The score of each candidate, and the cross-entropy of each list where relevances are known."""
    if encoded.sequences is None:
        raise ValueError("lists have a sequence for each candidate")
    scores = torch.cat(
        [_scores(model, {name: values[few] for name, values in batch.inputs.items()}) for few in few_at_once(batch)]
    )
    losses = None
    if batch.targets is not None:
        losses = list_losses(softmax_loss, scores.cpu().double(), batch.targets.cpu().double()).numpy()
    offsets = offsets_of(np.diff(encoded.sequences)[batch.rows])
    return Predictions(Lists(offsets, scores.cpu().numpy()), np.ones(len(batch)), losses)


def _scores(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(s,) in float32."""
    scores: torch.Tensor = model(**inputs).logits.float()
    return scores[:, 0]


@dataclass(frozen=True)
class ListObjective:
    """The sum over lists of a loss between the scores of their candidates and how relevant these are."""

    list_loss: ListLoss

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        losses = list_losses(self.list_loss, _scores(model, batch.inputs), batch.targets)
        return backward(losses.sum()), len(losses)


def objective(loss: Spec, targets: Lists) -> Objective:
    """Scores (s,) of all candidates, relevances (b, longest list); these as shares of the highest in training."""
    made: Callable[[float], ListLoss] = take_loss(LOSSES, loss)
    return ListObjective(made(float(targets.numbers.max(initial=1.0))))


def list_losses(loss: ListLoss, scores: torch.Tensor, relevances: torch.Tensor) -> torch.Tensor:
    """(b,) the loss of each list.

    Args:
        scores: (s,) of the candidates, list after list.
        relevances: (b, longest list), negative where a list has ended.
    """
    there = relevances >= 0
    placed = torch.zeros_like(relevances, dtype=scores.dtype).masked_scatter(there, scores)
    return loss(placed, relevances.clamp_min(0).to(scores.dtype), there)


def _pointwise(options: NoOptions, highest: float) -> ListLoss:
    """Binary cross-entropy of each candidate by itself, the mean over the list."""

    def loss(scores: torch.Tensor, relevances: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        wanted = relevances / highest
        each = functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        return (each * there).sum(1) / there.sum(1)

    return loss


def _pairwise(options: NoOptions, highest: float) -> ListLoss:
    """RankNet: Burges et al. (2005), Learning to Rank using Gradient Descent, equation 3 with a target of 1.

    Of every two candidates of which one is more relevant; the mean over these pairs, 0 where there are none.
    """

    def loss(scores: torch.Tensor, relevances: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        better = (relevances[:, :, None] > relevances[:, None, :]) & there[:, :, None] & there[:, None, :]
        each = functional.softplus(scores[:, None, :] - scores[:, :, None])
        return (each * better).sum((1, 2)) / better.sum((1, 2)).clamp_min(1)

    return loss


def softmax_loss(scores: torch.Tensor, relevances: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each list's shares of relevance and the softmax of its scores: (b, longest list) -> (b,)."""
    shares = relevances / relevances.sum(1, keepdim=True).clamp_min(torch.finfo(relevances.dtype).tiny)
    logs = scores.masked_fill(~there, -torch.inf).log_softmax(1)
    return -(shares * logs.masked_fill(~there, 0)).sum(1)


def _listwise(options: NoOptions, highest: float) -> ListLoss:
    """ListNet: Cao et al. (2007), Learning to Rank: From Pairwise Approach to Listwise Approach, section 5.

    Cross-entropy of two probabilities of being first: a candidate's share of the list's relevance, and the softmax of
    the scores. (The paper takes the exponential of the relevances, too, under which one relevant candidate among many
    would get little.)
    """
    return softmax_loss


LOSSES = {
    "listnet": Entry(NoOptions, _listwise, "listwise: softmax cross-entropy over a list's candidates"),
    "ranknet": Entry(NoOptions, _pairwise, "pairwise: log-sigmoid of the difference of two candidates' scores"),
    "binary-cross-entropy": Entry(NoOptions, _pointwise, "pointwise: sigmoid cross-entropy of each candidate"),
}
