"""Queries and their candidates as vectors of one encoder: a candidate's score is the cosine of the two (two towers).

Huang et al. (2013), Learning Deep Structured Semantic Models for Web Search. Both towers have the same weights
(Reimers and Gurevych, 2019, Sentence-BERT). A text is one sequence, however many lists have it, so that it is encoded
once; in training the candidates of a batch's other lists are negatives, too, by the losses of `similarity`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chainrule.core.lists import Lists
from chainrule.core.recipe import Spec
from chainrule.core.task import Predictions
from chainrule.data.batch import Batch, in_pieces
from chainrule.data.encode import Encoded, offsets_of
from chainrule.data.encode import encode as encode_texts
from chainrule.data.lists import ITEM, QUERY, candidates_of
from chainrule.tasks.candidates import list_losses, softmax_loss
from chainrule.tasks.objectives import take_loss
from chainrule.tasks.reading import READ_TOKENS
from chainrule.tasks.similarity import RELATION_LOSSES, SCALE, VectorLoss
from chainrule.tasks.vectors import VectorObjective, vector_objective

# the third does not look at candidates that are not relevant
LOSSES = {name: RELATION_LOSSES[name] for name in ("multiple-negatives", "triplet")}


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise each text once; a row's sequences are its query and then its candidates.

    Args:
        inputs, targets: as `candidates.encode` takes them.
        max_length: longer texts are cut; `full_lengths` has the longest of a row.
    """
    numbers: dict[str, int] = {}
    shared, counts = array("q"), list[int]()
    for query, cell in zip(inputs[QUERY], inputs[ITEM], strict=True):
        texts = query, *candidates_of(cell)[1]
        shared.extend(numbers.setdefault(text, len(numbers)) for text in texts)
        counts.append(len(texts))
    flat = encode_texts(tokenizer, {"text": list(numbers)}, None, max_length)
    places, sequences = np.array(shared, np.int64), offsets_of(counts)
    longest = np.maximum.reduceat(flat.full_lengths[places], sequences[:-1]) if counts else flat.full_lengths
    return replace(flat, full_lengths=longest, sequences=sequences, shared=places, targets=targets)


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """The cosine of each candidate with its query, and the cross-entropy of each list where relevances are known.

    Of the latter cosines are multiplied by SCALE, as in training with the default loss.
    """
    pieces = in_pieces(replace(batch, at_once=READ_TOKENS))
    order = torch.cat([rows for rows, _ in pieces]).argsort()
    vectors = torch.cat([model(**inputs).vectors for _, inputs in pieces])[order].float()
    queries, candidates = _places(batch)
    cosines = (vectors[queries] * vectors[candidates]).sum(-1)
    losses = None
    if batch.targets is not None:
        losses = list_losses(softmax_loss, SCALE * cosines.cpu().double(), batch.targets.cpu().double()).numpy()
    offsets = offsets_of(_counts(batch) - 1)
    return Predictions(Lists(offsets, cosines.cpu().numpy()), np.ones(len(batch)), losses)


def objective(loss: Spec, targets: Any) -> VectorObjective:
    """What is relevant to a query shall be nearer to it than other texts of the batch."""
    return vector_objective(take_loss(LOSSES, loss), losses_of_lists)


def losses_of_lists(loss: VectorLoss, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(b,) the loss of each list: the mean over its relevant candidates, each by its share of the list's relevance.

    Each of them makes an example with the query and all candidates that are not relevant. Where a list has fewer of
    these than another, the relevant one stands in their places, which no loss takes for a negative; nor does any take
    what is relevant to the same query, whatever list it comes from.

    Args:
        vectors: (s, d) of the batch's different texts.
    """
    if batch.targets is None or batch.shared is None:
        raise ValueError("lists without relevances have no loss")
    relevances = batch.targets.cpu().numpy()
    rows, columns = np.nonzero(relevances > 0)
    starts = offsets_of(_counts(batch))[:-1]
    others = [np.flatnonzero(row == 0) for row in relevances]
    width = max(len(places) for places in others)
    chosen = np.empty((len(rows), 2 + width), np.int64)
    chosen[:, 0], chosen[:, 1] = starts[rows], starts[rows] + 1 + columns
    chosen[:, 2:] = chosen[:, 1:2]
    for example, row in enumerate(rows.tolist()):
        chosen[example, 2 : 2 + len(others[row])] = starts[row] + 1 + others[row]
    known = torch.from_numpy(batch.shared[chosen]).to(vectors.device)  # the same text has the same number
    each = loss(vectors[known], known)
    shares = relevances[rows, columns] / np.where(relevances > 0, relevances, 0).sum(1)[rows]
    weighted = each * torch.from_numpy(shares).to(each)
    return weighted.new_zeros(len(batch)).index_add(0, torch.from_numpy(rows).to(vectors.device), weighted)


def _counts(batch: Batch) -> np.ndarray:
    """(b,) the texts of each list, its query among them."""
    if batch.counts is None:
        raise ValueError("lists have several texts")
    return batch.counts


def _places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each candidate (k,) which of the batch's texts its query is, and which it is itself."""
    if batch.shared is None:
        raise ValueError("lists have texts in common")
    counts = _counts(batch)
    firsts = offsets_of(counts)[:-1]
    queries = np.repeat(batch.shared[firsts], counts - 1)
    candidates = np.delete(batch.shared, firsts)
    return torch.from_numpy(queries).to(batch.device), torch.from_numpy(candidates).to(batch.device)
