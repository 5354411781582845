"""Lists whose texts are sequences in common, and the loss that a list has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chainrule.core.lists import Lists
from chainrule.core.recipe import Spec, Structure
from chainrule.core.task import Predictions
from chainrule.data.batch import Batch, collate, with_common
from chainrule.data.encode import Encoded, joined
from chainrule.data.lists import cell_of
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.tasks.objectives import take_loss
from chainrule.tasks.similarity import RELATION_LOSSES
from chainrule.tasks.towers import encode, losses_of_lists, objective, read

pytestmark = pytest.mark.unit
SCALE = 20.0


def encoded_of(tiny_bert: Path) -> Encoded:
    queries = ["the film", "a book", "the film"]
    cells = [["good", "bad it", "a warm room"], ["dull", "good"], ["dull", "it", "warm"]]
    wanted = Lists(np.array([0, 3, 5, 8]), np.array([1, 0, 0, 0, 2, 3, 0, 1], np.float32))
    return encode(load_tokenizer(str(tiny_bert)), {"query": queries, "item": [*map(cell_of, cells)]}, wanted, 16)


def batch_of(encoded: Encoded, rows: list[int]) -> Batch:
    return collate(encoded, np.array(rows), pad_id=0, left=False, device=torch.device("cpu"))


@pytest.mark.parametrize("at_once", [5, 20])
def test_pieces_give_the_gradients_of_the_whole_batch(tiny_bert: Path, at_once: int) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(str(tiny_bert), tokenizer, (), "", Structure(), seed=0, head="encoder").double().eval()
    batch, found = batch_of(encoded_of(tiny_bert), [2, 0, 1]), []
    for limit in (None, at_once):
        model.zero_grad(set_to_none=True)
        loss, count = objective(Spec(name="default"), None).accumulate(model, replace(batch, at_once=limit))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert count == 3
        found.append((float(loss), gradient.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert float(found[0][1].abs().max()) > 0
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-10)


def test_scores_are_the_same_whatever_else_is_in_the_batch(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(str(tiny_bert), tokenizer, (), "", Structure(), seed=0, head="encoder").eval()
    encoded = encoded_of(tiny_bert)

    def said(rows: list[int]) -> Predictions:
        with torch.inference_mode():
            return read(model, batch_of(encoded, rows), encoded)

    both, alone = said([2, 0]), [said([2]), said([0])]
    np.testing.assert_allclose(both.values.numbers, np.concatenate([each.values.numbers for each in alone]), atol=1e-6)
    assert both.losses is not None
    assert both.values.offsets.tolist() == [0, 3, 6]
    inputs = tokenizer(["the film", "good"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        film, good = model(**inputs).vectors
    assert float(both.values.numbers[3]) == pytest.approx(float(film @ good), abs=1e-6)
    scores = SCALE * alone[0].values.numbers.astype(np.float64)
    shares = scores - np.log(np.exp(scores).sum())
    assert both.losses[0] == pytest.approx(-0.75 * shares[0] - 0.25 * shares[2], rel=1e-6)


def words(encoded: Encoded, row: int) -> list[tuple[int, ...]]:
    spans = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    texts = [tuple(encoded.ids[start:end].tolist()) for start, end in spans]
    return [texts[place] for place in encoded.sequences_of(np.array([row]))]


def test_a_text_is_one_sequence(tiny_bert: Path) -> None:
    encoded = encoded_of(tiny_bert)
    assert len(encoded) == 3
    assert len(encoded.offsets) - 1 == 8  # two queries and six items
    assert encoded.sequences is not None
    assert encoded.sequences.tolist() == [0, 4, 7, 11]
    assert words(encoded, 0)[0] == words(encoded, 2)[0]
    assert encoded.lengths.tolist() == [4 * 5, 3 * 4, 4 * 4]
    assert encoded.full_lengths.tolist() == [5, 4, 4]
    assert not encoded.cut.any()
    batch = batch_of(encoded, [0, 2])
    assert len(batch.inputs["input_ids"]) == 7
    assert batch.shared is not None
    assert batch.shared[0] == batch.shared[4]


def test_rows_keep_their_texts(tiny_bert: Path) -> None:
    encoded = encoded_of(tiny_bert)
    few = encoded.take(np.array([2, 0]))
    assert [words(few, 0), words(few, 1)] == [words(encoded, 2), words(encoded, 0)]
    assert len(few.offsets) - 1 == 7
    both = joined([encoded.take(np.array([1])), few])
    assert [words(both, row) for row in range(3)] == [words(encoded, row) for row in (1, 2, 0)]


def test_batches_are_bounded_by_different_texts(tiny_bert: Path) -> None:
    encoded = encoded_of(tiny_bert)
    assert [rows.tolist() for rows in with_common(encoded, 8 * 5)] == [[0, 1, 2]]
    assert [rows.tolist() for rows in with_common(encoded, 6 * 5)] == [[0, 1], [2]]
    assert [rows.tolist() for rows in with_common(encoded, 1)] == [[0], [1], [2]]


def test_the_loss_of_a_list_is_the_batch_s_cross_entropy(tiny_bert: Path) -> None:
    encoded = encoded_of(tiny_bert)
    batch = batch_of(encoded, [0, 1, 2])
    assert batch.shared is not None
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    found = losses_of_lists(take_loss(RELATION_LOSSES, Spec(name="default"))(), vectors, batch)
    film, good, bad, room, book, dull, it, warm = (batch.shared[place] for place in (0, 1, 2, 3, 4, 5, 9, 10))
    assert (batch.shared[6], batch.shared[7], batch.shared[8]) == (good, film, dull)

    def loss(query: int, wanted: int, others: list[int]) -> float:
        chosen = SCALE * (vectors[[wanted, *others]] @ vectors[query])
        return float(chosen.logsumexp(0) - chosen[0])

    # relevant to the film are good, dull and warm, wherever they stand; to the book it is good alone. A text stands
    # among the negatives as often as the batch has it.
    def negatives(right: set[int]) -> list[int]:
        own = [[good, bad, room], [good, dull, good], [dull, it, dull], [warm, it, warm]]
        return [place for places in own for place in places if place not in right]

    film_right = {int(place) for place in (good, dull, warm)}
    expected = [
        loss(film, good, negatives(film_right)),
        loss(book, good, negatives({int(good)})),
        0.75 * loss(film, dull, negatives(film_right)) + 0.25 * loss(film, warm, negatives(film_right)),
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
