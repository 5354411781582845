"""Losses on vectors: against plain loops in float64, their gradients, and what is no negative."""

from __future__ import annotations

from math import exp, log, log1p

import numpy as np
import pytest
import torch
from torch.nn import functional

from chainrule.core.recipe import Spec
from chainrule.errors import RecipeError
from chainrule.tasks.objectives import take_loss
from chainrule.tasks.similarity import RELATION_LOSSES, SCORE_LOSSES, VectorLoss, examples_of, nested

pytestmark = pytest.mark.unit

PAIRS = torch.tensor([[1, 10], [2, 11], [1, 12], [3, 10], [11, 13]])  # one anchor twice, one positive twice
TRIPLETS = torch.cat([PAIRS, torch.tensor([[20], [10], [21], [22], [2]])], 1)
LABELS = torch.tensor([5, 6, 5, 7, 6])
SCORES = torch.tensor([3.0, 1.0, 3.0, 0.5, 2.0])


def loss_of(name: str, **options: object) -> VectorLoss:
    shelf = SCORE_LOSSES if name == "cosent" else RELATION_LOSSES
    part = take_loss(shelf, Spec(name=name, options=options))
    return nested(part(), part.options.dimensions)  # type: ignore[attr-defined]


def vectors(texts: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(5, texts, 6, generator=generator, dtype=torch.float64), dim=-1)


def negatives(known: torch.Tensor, row: int) -> list[tuple[int, int]]:
    """(row, place) of the texts that are none of the row's, by the plain rule."""
    anchor, positives = int(known[row, 0]), {int(p) for a, p in known[:, :2].tolist() if a == known[row, 0]}
    return [
        (other, place)
        for other in range(len(known))
        for place in range(1, known.shape[1])
        if int(known[other, place]) not in {anchor, *positives}
    ]


@pytest.mark.parametrize("known", [PAIRS, TRIPLETS])
def test_multiple_negatives_is_cross_entropy_among_the_batchs_texts(known: torch.Tensor) -> None:
    texts = vectors(known.shape[1])
    values = texts.numpy()
    for row, found in enumerate(loss_of("multiple-negatives", scale=7)(texts, known).tolist()):
        right = exp(7 * values[row, 0] @ values[row, 1])
        wrong = sum(exp(7 * values[row, 0] @ values[other, place]) for other, place in negatives(known, row))
        assert found == pytest.approx(-log(right / (right + wrong)), rel=1e-10)


def test_the_symmetric_form_looks_both_ways() -> None:
    texts = vectors(2)
    both = loss_of("multiple-negatives", symmetric=True)(texts, PAIRS)
    plain = loss_of("multiple-negatives")
    expected = (plain(texts, PAIRS) + plain(texts[:, [1, 0]], PAIRS[:, [1, 0]])) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-12)


def test_same_texts_and_same_anchors_are_no_negatives() -> None:
    wrong = examples_of(vectors(2), PAIRS).negative
    assert wrong.int().tolist() == [
        [0, 1, 0, 0, 1],  # both positives of anchor 1 are right for its rows, and 10 once more
        [1, 0, 1, 1, 1],
        [0, 1, 0, 0, 1],
        [0, 1, 1, 0, 1],
        [1, 0, 1, 1, 0],  # 11 is this row's own anchor
    ]
    same_label = examples_of(vectors(1), LABELS).negative
    assert (same_label == (LABELS[:, None] != LABELS)).all()


@pytest.mark.parametrize("texts", [1, 2])
def test_labelled_texts(texts: int) -> None:
    units = vectors(texts)
    values = units.numpy()
    for row, found in enumerate(loss_of("multiple-negatives", scale=3)(units, LABELS).tolist()):
        alike = [other for other in range(5) if LABELS[other] == LABELS[row] and (texts == 2 or other != row)]
        wrong = sum(exp(3 * values[row, 0] @ values[other, -1]) for other in range(5) if LABELS[other] != LABELS[row])
        each = [exp(3 * values[row, 0] @ values[other, -1]) for other in alike]
        expected = [-log(right / (right + wrong)) for right in each]
        assert found == pytest.approx(sum(expected) / max(1, len(expected)), rel=1e-10)


@pytest.mark.parametrize("known", [PAIRS, LABELS])
def test_supervised_contrastive(known: torch.Tensor) -> None:
    units = vectors(2)
    classes = (known if known.dim() == 1 else known[:, 0]).tolist() * 2
    flat = np.concatenate([units[:, 0], units[:, 1]])
    expected = []
    for row in range(10):
        others = [other for other in range(10) if other != row]
        below = sum(exp(20 * flat[row] @ flat[other]) for other in others)
        alike = [other for other in others if classes[other] == classes[row]]
        expected.append(np.mean([-log(exp(20 * flat[row] @ flat[other]) / below) for other in alike]))
    found = loss_of("supervised-contrastive")(units, known)
    np.testing.assert_allclose(found, (np.array(expected[:5]) + expected[5:]) / 2, rtol=1e-10)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("known", [PAIRS, TRIPLETS, LABELS])
def test_triplets(known: torch.Tensor, distance: str) -> None:
    units = vectors(known.shape[1] if known.dim() > 1 else 1)
    values = units.numpy()

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        return float(1 - one @ other if distance == "cosine" else np.linalg.norm(one - other))

    for row, found in enumerate(loss_of("triplet", margin=0.4, distance=distance)(units, known).tolist()):
        if known.dim() == 1:
            alike = [(other, 0) for other in range(5) if LABELS[other] == LABELS[row] and other != row]
            wrong = [(other, 0) for other in range(5) if LABELS[other] != LABELS[row]]
        else:
            alike, wrong = [(row, 1)], negatives(known, row)
            wrong = [each for each in wrong if each[0] == row] if known.shape[1] > 2 else wrong
        if not alike or not wrong:
            assert found == 0
            continue
        far = max(apart(values[row, 0], values[each]) for each in alike)
        near = min(apart(values[row, 0], values[each]) for each in wrong)
        assert found == pytest.approx(max(0.0, 0.4 + far - near), rel=1e-10)


def test_cosent_puts_cosines_in_the_order_of_the_scores() -> None:
    units = vectors(2)
    cosines = [float(row[0] @ row[1]) for row in units.numpy()]
    wrong = [exp(9 * (cosines[j] - cosines[i])) for i in range(5) for j in range(5) if SCORES[i] > SCORES[j]]
    found = loss_of("cosent", scale=9)(units, SCORES)
    assert found.tolist() == pytest.approx([log1p(sum(wrong))] * 5, rel=1e-10)


def test_nested_dimensions_are_vectors_of_their_own() -> None:
    units = vectors(2)
    parts = [loss_of("multiple-negatives")(functional.normalize(units[..., :size], dim=-1), PAIRS) for size in (6, 2)]
    found = loss_of("multiple-negatives", dimensions=[6, 2])(units, PAIRS)
    np.testing.assert_allclose(found, (parts[0] + parts[1]) / 2, rtol=1e-12)
    with pytest.raises(RecipeError, match=r"loss\.options"):
        loss_of("cosent", dimensions=[])


CASES = [
    ("multiple-negatives", {"symmetric": True}, TRIPLETS),
    ("multiple-negatives", {"dimensions": [6, 3]}, LABELS),
    ("triplet", {"margin": 1.5}, PAIRS),
    ("triplet", {"margin": 1.5, "distance": "euclidean"}, TRIPLETS),
    ("supervised-contrastive", {"scale": 4}, PAIRS),
    ("supervised-contrastive", {"scale": 4}, LABELS),
    ("cosent", {"scale": 3}, SCORES),
]


@pytest.mark.parametrize(("name", "options", "known"), CASES)
def test_gradients(name: str, options: dict[str, object], known: torch.Tensor) -> None:
    texts = known.shape[1] if known.dim() > 1 else 1 if known is LABELS and name == "multiple-negatives" else 2
    loss = loss_of(name, **options)
    raw = vectors(texts, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(functional.normalize(values, dim=-1), known).sum(), (raw,))


@pytest.mark.parametrize(("name", "options", "known"), CASES)
def test_a_row_alone_has_a_loss_that_can_be_gone_back_through(
    name: str, options: dict[str, object], known: torch.Tensor
) -> None:
    raw = vectors(known.shape[1] if known.dim() > 1 else 2)[:1].clone().requires_grad_()
    total = loss_of(name, **options)(raw, known[:1]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(total)
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
