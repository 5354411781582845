"""Texts to vectors: several texts a row, each a sequence of its own, and what the rows of a split are to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy import sparse

from chainrule.core.recipe import Section, Spec
from chainrule.core.task import Predictions
from chainrule.data.batch import Batch, in_pieces
from chainrule.data.encode import Encoded, offsets_of
from chainrule.data.encode import encode as encode_texts
from chainrule.errors import Problem, RecipeError, Where
from chainrule.metrics import retrieval
from chainrule.system.seed import torch_generators
from chainrule.tasks.objectives import backward, take_loss
from chainrule.tasks.similarity import RELATION_LOSSES, SCORE_LOSSES, VectorLoss, nested

TFIDF = "tfidf-cosine"
Losses = Callable[[VectorLoss, torch.Tensor, Batch], torch.Tensor]


class Options(Section):
    """Negatives that are looked for among the training rows before step one (task.options).

    Attributes:
        hard_negatives: of each pair, how many texts most like its anchor become its negatives; 0 for none.
        below: the most that the cosine of a negative may have, as a share of the positive's: what is more like the
            anchor may well be right, too (TopK-PercPos of Moreira et al., 2024, NV-Retriever).
    """

    hard_negatives: int = Field(default=0, ge=0, le=64)
    below: float = Field(default=0.95, gt=0, le=1)


def losses_of_rows(loss: VectorLoss, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(b,) losses of rows of which each has as many texts as the others, whose vectors (s, d) are those of its own."""
    if batch.targets is None:
        raise ValueError("rows without targets have no loss")
    return loss(vectors.view(len(batch), -1, vectors.shape[-1]), batch.targets)


@dataclass(frozen=True)
class VectorObjective:
    """The sum over rows of a loss on the vectors of a whole batch.

    What is too large for memory is embedded in pieces whose graphs are not kept; the loss gives each vector its
    gradient; then each piece is embedded again, with the same dropout, and that gradient goes back through it. The
    gradient is that of the whole batch: Gao et al. (2021), Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup (GradCache).

    Attributes:
        losses: the loss, the vectors (s, d) of a batch's texts, and the batch -> (b,) losses of its rows.
    """

    loss: VectorLoss
    losses: Losses = losses_of_rows

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        pieces = in_pieces(batch)
        if len(pieces) == 1:
            return self._of_vectors(model(**batch.inputs).vectors, batch), len(batch)
        again, parts = [], []
        for _, inputs in pieces:  # as with a graph, since without one attention may draw other masks
            again.append(torch_generators())
            parts.append(model(**inputs).vectors.detach())
        order = torch.cat([rows for rows, _ in pieces]).argsort()
        vectors = torch.cat(parts)[order].requires_grad_()
        loss = self._of_vectors(vectors, batch)
        if vectors.grad is None:
            raise ValueError("the loss has no gradient")
        for (rows, inputs), put_back in zip(pieces, again, strict=True):
            put_back()
            part = model(**inputs).vectors
            with torch.autocast(part.device.type, enabled=False):
                part.backward(vectors.grad[rows])
        return loss, len(batch)

    def _of_vectors(self, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return backward(self.losses(self.loss, vectors, batch).sum())


def relation_objective(loss: Spec, targets: Any) -> VectorObjective:
    """What belongs together shall be near. Targets (b, s) numbers of texts, or (b,) of labels."""
    return vector_objective(take_loss(RELATION_LOSSES, loss))


def score_objective(loss: Spec, targets: Any) -> VectorObjective:
    """Cosines shall be in the order of the scores (b,)."""
    return vector_objective(take_loss(SCORE_LOSSES, loss))


def vector_objective(part: Any, losses: Losses = losses_of_rows) -> VectorObjective:
    """The objective of a loss that was taken from its shelf."""
    return VectorObjective(nested(part(), part.options.dimensions), losses)


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise every text of a row as a sequence of its own, in the order of the fields."""
    columns, width = list(inputs.values()), len(inputs)
    if width == 1:
        return encode_texts(tokenizer, inputs, targets, max_length)
    flat = encode_texts(tokenizer, {"text": Interleaved(columns)}, None, max_length)
    longest = flat.full_lengths.reshape(-1, width).max(1)
    sequences = np.arange(0, len(flat.offsets), width, dtype=np.int64)
    return replace(flat, full_lengths=longest, sequences=sequences, targets=targets)


class Interleaved(Sequence[str]):
    """Columns of texts as one: the texts of the first row, then those of the second, …"""

    def __init__(self, columns: Sequence[Sequence[str]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns) * len(self.columns[0])

    def __getitem__(self, index: Any) -> Any:
        """One text, or those of a slice without steps."""
        width = len(self.columns)
        if not isinstance(index, slice):
            return self.columns[index % width][index // width]
        start, stop, _ = index.indices(len(self))
        first = start // width
        rows = zip(*(column[first : -(-stop // width)] for column in self.columns), strict=True)
        return [text for row in rows for text in row][start - first * width : stop - first * width]


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """The vectors of each row's texts (b, s, d) in float32."""
    vectors = model(**batch.inputs).vectors.float().cpu().numpy()
    return Predictions(vectors.reshape(len(batch), -1, vectors.shape[-1]), np.ones(len(batch), np.float32))


def find(encoded: Encoded, read: Predictions) -> Predictions:
    """What each row's text finds among those of all rows: `values` as `metrics.retrieval.judged` gives them."""
    search = retrieval.Search.made(np.asarray(encoded.targets))
    asking = read.values[:, 0]
    texts = read.values[search.texts, 0 if encoded.targets.ndim == 1 else 1]
    return _found(search, lambda rows: (asking[rows] @ texts.T).astype(np.float64))


def compare(encoded: Encoded, read: Predictions) -> Predictions:
    """The cosine of each row's two texts, and how far it is out of the scores' order."""
    cosines = np.einsum("nd,nd->n", read.values[:, 0], read.values[:, 1], dtype=np.float64)
    losses = retrieval.ordered_losses(np.asarray(encoded.targets), cosines)
    return Predictions(cosines, np.ones(len(cosines)), losses)


def find_by_words(encoded: Encoded) -> dict[str, Predictions]:
    """The same by TF-IDF of the tokens, whose weights are those of this very split."""
    weights, firsts = _tfidf(encoded)
    search = retrieval.Search.made(np.asarray(encoded.targets))
    asking, texts = weights[firsts], weights[firsts[search.texts] + (encoded.targets.ndim > 1)]
    return {TFIDF: _found(search, lambda rows: (asking[rows] @ texts.T).toarray())}


def compare_by_words(encoded: Encoded) -> dict[str, Predictions]:
    """The cosine of each row's two texts by TF-IDF of the tokens."""
    weights, firsts = _tfidf(encoded)
    cosines = np.asarray(weights[firsts].multiply(weights[firsts + 1]).sum(1), dtype=np.float64).ravel()
    losses = retrieval.ordered_losses(np.asarray(encoded.targets), cosines)
    return {TFIDF: Predictions(cosines, np.ones(len(cosines)), losses)}


def _found(search: retrieval.Search, similar: retrieval.Similar) -> Predictions:
    values, losses = retrieval.judged(search, similar)
    return Predictions(values, np.ones(len(values)), losses)


def _tfidf(encoded: Encoded) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Of every sequence the weights (1 + log tf) · log(N / df) of its tokens at length one, and each row's first one.

    Salton and Buckley (1988), Term-weighting approaches in automatic text retrieval. A token that is everywhere, such
    as one that begins every text, weighs nothing.
    """
    count = len(encoded.offsets) - 1
    width = int(encoded.ids.max(initial=0)) + 1
    parts = np.ones(len(encoded.ids)), encoded.ids, encoded.offsets
    counts = sparse.csr_matrix(parts, shape=(count, width), copy=True)  # what follows sorts in place
    counts.sum_duplicates()
    frequency = np.bincount(counts.indices, minlength=width)
    counts.data = (1 + np.log(counts.data)) * np.log(count / frequency[counts.indices])
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(1)).ravel())
    scaled = sparse.diags(1 / np.where(lengths > 0, lengths, 1.0)) @ counts
    firsts = np.arange(count) if encoded.sequences is None else encoded.sequences[:-1]
    return scaled.tocsr(), firsts


class Companions:
    """What is put beside the training rows: another text of the label, or the positives of other rows as negatives."""

    def check(self, targets: Any, options: Options) -> bool:
        """Whether the rows get any: labelled texts always, pairs where negatives are asked for.

        Raises:
            RecipeError: negatives are asked for, and the rows are no pairs.
        """
        pairs = targets.ndim == 2 and targets.shape[1] == 2
        if options.hard_negatives and not pairs:
            got = "labelled texts" if targets.ndim == 1 else "rows that have a negative"
            where, todo = Where(field="task.options.hard_negatives"), "Leave it at 0."
            raise RecipeError(
                "These rows get no negatives.", [Problem("pairs of anchor and positive", got, todo, where)]
            )
        return targets.ndim == 1 or options.hard_negatives > 0

    def find(self, encoded: Encoded, read: Callable[[], Predictions], options: Options) -> np.ndarray:
        """(n, 1) for labelled texts the next row of the same label, the first after the last; for pairs (n, k) the rows
        whose positives are most like the anchor, but no more than `options.below` says.

        A row for which there are fewer than k gets its nearest ones again, and one for which there is none its own
        positive, which no loss takes for a negative. Of equal ones the earlier comes first: the same vectors give the
        same.
        """
        known = np.asarray(encoded.targets)
        if known.ndim == 1:
            return _next_alike(known)[:, None]
        return _hard_negatives(known, read().values, options)

    def add(self, encoded: Encoded, found: np.ndarray) -> Encoded:
        """The rows with the last texts of these rows (n, k) after their own."""
        known = np.asarray(encoded.targets)
        width = 1 if known.ndim == 1 else 2
        own = width * np.arange(len(found))
        order = np.column_stack([*(own + place for place in range(width)), width * found + width - 1])
        flat = replace(encoded, sequences=None, targets=None, full_lengths=np.diff(encoded.offsets)).take(order.ravel())
        return replace(
            flat,
            sequences=offsets_of(np.full(len(found), order.shape[1])),
            full_lengths=encoded.full_lengths,
            targets=known if known.ndim == 1 else np.column_stack([known, known[found, 1]]),
        )


def _next_alike(labels: np.ndarray) -> np.ndarray:
    """(n,) the next row with the same label; after the last the first."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(labels[order]) != 0]))
    following = np.roll(order, -1)
    following[np.append(starts[1:], len(order)) - 1] = order[starts]
    found = np.empty_like(order)
    found[order] = following
    return found


def _hard_negatives(known: np.ndarray, vectors: np.ndarray, options: Options) -> np.ndarray:
    search = retrieval.Search.made(known)
    right, asking, texts = search.right(), vectors[:, 0], vectors[search.texts, 1]
    chosen = np.empty((len(known), options.hard_negatives), np.int64)
    size = max(1, retrieval.BLOCK // max(1, len(search.texts)))
    for start in range(0, len(known), size):
        few = np.arange(start, min(start + size, len(known)))
        for row, values in zip(few.tolist(), asking[few] @ texts.T, strict=True):
            limit = options.below * float(asking[row] @ vectors[row, 1])
            unfit = (values > limit) | (known[search.texts, 1] == known[row, 0])
            unfit[next(right)] = True
            order = np.argsort(np.where(unfit, np.inf, -values), kind="stable")[: options.hard_negatives]
            nearest = search.texts[order[~unfit[order]]]
            chosen[row] = np.resize(nearest if len(nearest) else np.array([row]), options.hard_negatives)
    return chosen
