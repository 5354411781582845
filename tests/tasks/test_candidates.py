"""Losses on lists against float64 references, and lists as sequences of one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from chainrule.core.lists import Lists, starts_of
from chainrule.core.recipe import Spec, Structure
from chainrule.data.batch import IGNORED, collate
from chainrule.data.lists import cell_of
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.tasks.candidates import ListObjective, encode, list_losses, objective, read

pytestmark = pytest.mark.unit
LISTS = [
    ([2.0, 0.0, 1.0], [0.3, -1.2, 2.0]),
    ([1.0, 0.0], [-0.4, 0.9]),
    ([1.0, 1.0], [0.2, -0.7]),
    ([0.0, 3.0, 0.0, 1.0], [5.0, -4.0, 1.0, 0.0]),
]


def listnet(relevances: np.ndarray, scores: np.ndarray) -> float:
    return float(-(relevances / relevances.sum() * log_softmax(scores)).sum())


def ranknet(relevances: np.ndarray, scores: np.ndarray) -> float:
    pairs = [
        np.log1p(np.exp(-(scores[i] - scores[j])))
        for i in range(len(scores))
        for j in range(len(scores))
        if relevances[i] > relevances[j]
    ]
    return float(np.mean(pairs)) if pairs else 0.0


def cross_entropy(relevances: np.ndarray, scores: np.ndarray) -> float:
    wanted, chance = relevances / 3, expit(scores)
    return float(-(wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance)).mean())


REFERENCES = {"listnet": listnet, "ranknet": ranknet, "binary-cross-entropy": cross_entropy}


def targets() -> Lists:
    counts = np.array([len(relevances) for relevances, _ in LISTS])
    return Lists(starts_of(counts), np.array([n for relevances, _ in LISTS for n in relevances], np.float32))


def loss_of(name: str) -> Any:
    made = objective(Spec(name=name), targets())
    assert isinstance(made, ListObjective)
    return made.list_loss


@pytest.mark.parametrize("name", REFERENCES)
def test_losses_are_those_of_the_papers(name: str) -> None:
    scores = torch.tensor([n for _, given in LISTS for n in given], dtype=torch.float64)
    padded = torch.from_numpy(targets().padded(IGNORED)).double()
    found = list_losses(loss_of(name), scores, padded)
    expected = [REFERENCES[name](np.array(wanted), np.array(given)) for wanted, given in LISTS]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_gradients(name: str) -> None:
    scores = torch.tensor([n for _, given in LISTS for n in given], dtype=torch.float64, requires_grad=True)
    padded = torch.from_numpy(targets().padded(IGNORED)).double()
    assert torch.autograd.gradcheck(lambda given: list_losses(loss_of(name), given, padded), scores)


def test_a_row_is_a_list_whatever_else_is_in_the_batch(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(
        str(tiny_bert), tokenizer, ("relevance",), "", Structure(), seed=0, head="classifier"
    ).eval()
    inputs = {"query": ["the film", "a book"], "item": [cell_of(["good", "bad it", "a warm room"]), cell_of(["dull"])]}
    wanted = Lists(np.array([0, 3, 4]), np.array([1, 0, 0, 1], np.float32), np.arange(4, dtype=np.int32))
    encoded = encode(tokenizer, inputs, wanted, 16)
    assert len(encoded) == 2
    assert encoded.sequences is not None
    assert encoded.sequences.tolist() == [0, 3, 4]
    assert encoded.full_lengths.tolist() == [8, 6]
    assert encoded.lengths.tolist() == [24, 6]

    def scores(rows: list[int]) -> np.ndarray:
        batch = collate(encoded, np.array(rows), pad_id=0, left=False, device=torch.device("cpu"))
        with torch.inference_mode():
            found = read(model, batch, encoded)
        assert found.losses is not None
        assert len(found.losses) == len(rows)
        numbers: np.ndarray = found.values.numbers
        return numbers

    together = scores([0, 1])
    np.testing.assert_allclose(together, np.concatenate([scores([0]), scores([1])]), rtol=1e-4, atol=1e-6)
    alone = tokenizer(["the film"] * 3, ["good", "bad it", "a warm room"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(together[:3], model(**alone).logits[:, 0].numpy(), rtol=1e-4, atol=1e-6)
    batch = collate(encoded, np.array([1, 0]), pad_id=0, left=False, device=torch.device("cpu"))
    assert batch.targets is not None
    assert batch.targets.tolist() == [[1, IGNORED, IGNORED], [1, 0, 0]]


def test_gradients_of_the_sum_add_up_over_micro_batches(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    model = load_classifier(
        str(tiny_bert), tokenizer, ("relevance",), "", Structure(), seed=0, head="classifier"
    ).eval()
    cells = [cell_of(["good", "bad it"]), cell_of(["dull", "a warm room", "it"])]
    wanted = Lists(np.array([0, 2, 5]), np.array([1, 0, 0, 1, 0], np.float32))
    encoded = encode(tokenizer, {"query": ["the film", "a book"], "item": cells}, wanted, 16)
    made = objective(Spec(name="default"), wanted)

    def gradient(parts: list[list[int]]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        total = 0.0
        for rows in parts:
            batch = collate(encoded, np.array(rows), pad_id=0, left=False, device=torch.device("cpu"))
            loss, count = made.accumulate(model, batch)
            assert count == len(rows)
            total += float(loss)
        return total, model.classifier.weight.grad.clone()

    whole, pieces = gradient([[0, 1]]), gradient([[0], [1]])
    assert whole[0] == pytest.approx(pieces[0], rel=1e-5)
    torch.testing.assert_close(whole[1], pieces[1], rtol=1e-4, atol=1e-6)
