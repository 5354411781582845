"""Rows of several texts: gradients in pieces, what stands beside the rows, TF-IDF, and what is read of a split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer
from torch import nn

from chainrule.core.recipe import Spec, Structure
from chainrule.core.task import Predictions
from chainrule.data.batch import Batch, collate, in_pieces
from chainrule.data.encode import Encoded
from chainrule.errors import RecipeError
from chainrule.models.accelerate import accelerate
from chainrule.models.embedder import Vectors
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.system.seed import torch_generators
from chainrule.tasks.vectors import (
    Companions,
    Interleaved,
    Options,
    VectorObjective,
    compare,
    compare_by_words,
    encode,
    find,
    find_by_words,
    relation_objective,
    score_objective,
)
from chainrule.testing.data import pairs
from chainrule.testing.models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
ROWS = pairs(7)


def rows(width: int = 2) -> Encoded:
    """Texts of very different lengths, with numbers of their own."""
    texts = {"anchor": [row["text_a"] for row in ROWS], "positive": [row["text_b"][:9] for row in ROWS]}
    if width == 3:
        texts["negative"] = [row["text_b"] for row in ROWS]
    known = np.arange(len(ROWS) * width).reshape(-1, width) % 11
    return encode(tiny_tokenizer(64), texts, known, 64)


def batch_of(encoded: Encoded, at_once: int | None) -> Batch:
    return replace(collate(encoded, np.arange(len(encoded)), pad_id=0, left=False, device=CPU), at_once=at_once)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return embedder(tmp_path_factory.mktemp("bert"), "bert")


def embedder(folder: Any, family: str) -> Any:
    place = str(tiny_model(folder, family))
    return load_classifier(place, load_tokenizer(place), (), "", Structure(), seed=0, head="encoder")


def gradients(model: Any, objective: VectorObjective, batch: Batch) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss, count = objective.accumulate(model, batch)
    assert count == len(batch)
    return float(loss), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("at_once", [1, 40, 100])
def test_pieces_give_the_gradients_of_the_whole_batch(model: Any, width: int, at_once: int) -> None:
    model = model.double().eval()
    objective, encoded = relation_objective(Spec(name="default"), None), rows(width)
    whole, expected = gradients(model, objective, batch_of(encoded, None))
    pieces = in_pieces(batch_of(encoded, at_once))
    assert len(pieces) > 1
    assert sum(inputs["input_ids"].numel() for _, inputs in pieces) < batch_of(encoded, None).padded_tokens
    loss, found = gradients(model, objective, batch_of(encoded, at_once))
    assert loss == pytest.approx(whole, rel=1e-12)
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_piece_that_is_embedded_again_has_the_same_dropout(tmp_path: Any, kernels: bool) -> None:
    model = embedder(tmp_path / "bert", "bert").train()
    if kernels:
        accelerate(model, CPU)
    else:
        model = model.double()
    batch, objective = batch_of(rows(), 60), relation_objective(Spec(name="default"), None)
    torch.manual_seed(1)
    _, found = gradients(model, objective, batch)
    after = torch.rand(1)
    torch.manual_seed(1)  # the same masks, drawn once, with the graphs of all pieces kept
    pieces = in_pieces(batch)
    parts = [model(**inputs).vectors for _, inputs in pieces]
    vectors = torch.cat(parts)[torch.cat([places for places, _ in pieces]).argsort()]
    model.zero_grad(set_to_none=True)
    assert batch.targets is not None
    objective.loss(vectors.view(len(batch), -1, vectors.shape[-1]), batch.targets).sum().backward()  # type: ignore[no-untyped-call]
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert torch.rand(1) == after
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 if kernels else 1e-10)


class Counting(nn.Module):
    """A model that counts how many tokens of a graph it has at once."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 4)
        self.most = 0

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Vectors:
        self.most = max(self.most, input_ids.numel() if torch.is_grad_enabled() else 0)
        return Vectors(nn.functional.normalize(self.table(input_ids).mean(1), dim=-1))


def test_no_more_tokens_than_allowed_have_a_graph_at_once() -> None:
    model, batch = Counting(), batch_of(rows(), 50)
    relation_objective(Spec(name="default"), None).accumulate(model, batch)
    assert 0 < model.most <= 50
    relation_objective(Spec(name="default"), None).accumulate(model, replace(batch, at_once=None))
    assert model.most == batch.padded_tokens > 50


def test_pieces_of_rows_that_are_padded_on_the_left() -> None:
    encoded = rows()
    batch = replace(collate(encoded, np.arange(7), pad_id=0, left=True, device=CPU), at_once=30)
    for places, inputs in in_pieces(batch):
        for place, ids in zip(places.tolist(), inputs["input_ids"], strict=True):
            own = encoded.ids[encoded.offsets[place] : encoded.offsets[place + 1]]
            assert ids[-len(own) :].tolist() == own.tolist()
            assert not ids[: -len(own)].any()


def test_scores_are_learned_through_both_texts(model: Any) -> None:
    model = model.double().eval()
    encoded = replace(rows(), targets=np.arange(7.0))
    _, found = gradients(model, score_objective(Spec(name="default"), None), batch_of(encoded, None))
    assert all(torch.isfinite(each).all() for each in found)


def test_texts_of_a_row_stand_side_by_side() -> None:
    columns = [["a", "b", "c"], ["1", "2", "3"]]
    mixed = Interleaved(columns)
    assert len(mixed) == 6
    assert [mixed[place] for place in range(6)] == ["a", "1", "b", "2", "c", "3"]
    assert mixed[1:4] == ["1", "b", "2"]
    assert mixed[4:100] == ["c", "3"]
    encoded = rows(3)
    assert len(encoded) == 7
    assert encoded.full_lengths.tolist() == np.diff(encoded.offsets).reshape(-1, 3).max(1).tolist()


def test_labelled_texts_get_another_one_of_their_label() -> None:
    labels = np.array([4, 9, 4, 4, 7, 9])
    single = encode(tiny_tokenizer(64), {"text": [row["text_a"] for row in ROWS[:6]]}, labels, 64)
    companions = Companions()
    assert companions.check(labels, Options())
    found = companions.find(single, lambda: pytest.fail("no model is needed"), Options())
    assert found.tolist() == [[2], [5], [3], [0], [4], [1]]
    both = companions.add(single, found)
    for row, (partner,) in enumerate(found.tolist()):
        first, second = (slice(*both.offsets[[2 * row + place, 2 * row + place + 1]]) for place in (0, 1))
        assert both.ids[first].tolist() == single.ids[single.offsets[row] : single.offsets[row + 1]].tolist()
        assert both.ids[second].tolist() == single.ids[single.offsets[partner] : single.offsets[partner + 1]].tolist()
    assert both.targets.tolist() == labels.tolist()


def test_hard_negatives_are_the_nearest_texts_that_are_clearly_less_right() -> None:
    known = np.array([[1, 10], [2, 11], [3, 12], [1, 13], [14, 10]])
    angles = np.array([[0.0, 0.2], [0.1, 0.4], [2.0, 2.1], [0.0, 0.3], [0.5, 0.2]])
    vectors = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    encoded = replace(rows().take(np.arange(5)), targets=known)
    options = Options(hard_negatives=2, below=0.97)
    assert Companions().check(known, options)
    found = Companions().find(encoded, lambda: Predictions(vectors, np.ones(5)), options)
    cosine = np.cos(angles[:, :1] - angles[:, 1])
    for row, chosen in enumerate(found.tolist()):
        positives = set(known[known[:, 0] == known[row, 0], 1].tolist())
        fit = [r for r in (0, 1, 2, 3) if known[r, 1] not in {*positives, known[row, 0]}]
        fit = [r for r in fit if cosine[row, r] <= 0.97 * cosine[row, row]]
        best = sorted(fit, key=lambda r: -cosine[row, r])[:2]
        assert chosen == (best * 2)[:2] if best else [row, row]
    added = Companions().add(encoded, found)
    assert added.targets.tolist() == [[*known[row], *known[found[row], 1]] for row in range(5)]
    assert added.sequences is not None
    assert np.diff(added.sequences).tolist() == [4] * 5
    with pytest.raises(RecipeError, match="get no negatives"):
        Companions().check(known[:, 0], options)
    with pytest.raises(RecipeError, match="get no negatives"):
        Companions().check(np.ones((2, 3)), options)


def test_tfidf_is_that_of_scikit_learn() -> None:
    encoded = rows()
    counts = np.zeros((14, int(encoded.ids.max()) + 1))
    for place in range(14):
        np.add.at(counts[place], encoded.ids[encoded.offsets[place] : encoded.offsets[place + 1]], 1)
    frequency = (counts > 0).sum(0)
    plain = TfidfTransformer(sublinear_tf=True, smooth_idf=False).fit_transform(counts[:, frequency > 0])
    idf = np.log(14 / frequency[frequency > 0])
    weights = plain.toarray() / (idf + 1) * idf  # there every weight has one more
    weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    scored = replace(encoded, targets=np.arange(7.0))
    found = compare_by_words(scored)["tfidf-cosine"].values
    np.testing.assert_allclose(found, (weights[::2] * weights[1::2]).sum(1), rtol=1e-10)
    as_vectors = Predictions(weights.reshape(7, 2, -1), np.ones(7))
    np.testing.assert_allclose(compare(scored, as_vectors).values, found, rtol=1e-10)
    assert np.array_equal(encoded.ids, rows().ids)
    by_words, by_vectors = find_by_words(encoded)["tfidf-cosine"].losses, find(encoded, as_vectors).losses
    assert by_words is not None
    assert by_vectors is not None
    np.testing.assert_allclose(by_words, by_vectors, rtol=1e-10)


def test_generators_are_put_back() -> None:
    torch.manual_seed(3)
    put_back = torch_generators()
    first = torch.rand(2)
    put_back()
    assert torch.equal(torch.rand(2), first)
