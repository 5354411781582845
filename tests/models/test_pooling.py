"""Poolings and heads against plain loops in float64; padding counts nowhere."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from chainrule.core.recipe import Structure
from chainrule.models.pooling import CHANNELS, POOLINGS, WIDTHS, Attention, Convolutions, Pool, PooledHead

pytestmark = pytest.mark.unit

SIZE = 5
LENGTHS = (4, 1, 6)
NAMES = [name for kind in get_args(Structure.model_fields["pooling"].annotation) for name in get_args(kind)]
HEADS = [name for kind in get_args(Structure.model_fields["head"].annotation) for name in get_args(kind)]


def pool_of(name: str) -> Pool:
    torch.manual_seed(1)
    return Attention(SIZE).double() if name == "attention" else POOLINGS[name]


def padded(*, left: bool = False) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """States with rubbish where rows are padded, their mask, and the rows alone."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, SIZE, generator=generator, dtype=torch.float64) for length in LENGTHS]
    states = torch.full((len(rows), max(LENGTHS), SIZE), 1e3, dtype=torch.float64)
    mask = torch.zeros(states.shape[:2], dtype=torch.int64)
    for place, row in enumerate(rows):
        span = slice(max(LENGTHS) - len(row), None) if left else slice(0, len(row))
        states[place, span], mask[place, span] = row, 1
    return states, mask, rows


def reference(name: str, row: np.ndarray, pool: Any) -> np.ndarray:
    """The pooling of one row, as its definition says."""
    if name in ("cls", "last"):
        return np.array(row[0 if name == "cls" else -1])
    if name in ("mean", "max"):
        return np.array([getattr(row[:, column], name)() for column in range(SIZE)])
    weight, bias, query = (value.numpy() for value in pool.state_dict().values())
    scores = np.exp([float(query[0] @ np.tanh(weight @ token + bias)) for token in row])
    return np.array(sum(score / scores.sum() * token for score, token in zip(scores, row, strict=True)))


@pytest.mark.parametrize(
    ("name", "left"), [(name, left) for name in NAMES for left in (False, True) if not (left and name == "cls")]
)
def test_poolings_do_what_their_names_say(name: str, left: bool) -> None:
    states, mask, rows = padded(left=left)
    pool = pool_of(name)
    with torch.no_grad():
        found = pool(states, mask).numpy()
        for place, row in enumerate(rows):
            expected = reference(name, row.numpy(), pool)
            np.testing.assert_allclose(found[place], expected, rtol=1e-12)
            np.testing.assert_allclose(pool(row[None], None)[0].numpy(), expected, rtol=1e-12)


def test_convolutions_are_sums_over_windows_with_zeros_beyond_a_row() -> None:
    states, mask, rows = padded()
    torch.manual_seed(1)
    layer = Convolutions(SIZE).double()
    with torch.no_grad():
        found = layer(states, mask).numpy()
    for place, row in enumerate(rows):
        values = np.concatenate([np.zeros((8, SIZE)), row.numpy(), np.zeros((8, SIZE))])
        for number, (width, filters) in enumerate(zip(WIDTHS, layer.filters, strict=True)):
            weight, bias = (value.numpy() for value in filters.state_dict().values())
            for token in range(len(row)):
                start = 8 + token - (width - 1) // 2
                expected = np.maximum(np.einsum("wd,cdw->c", values[start : start + width], weight) + bias, 0)
                seen = found[place, token, number * CHANNELS : (number + 1) * CHANNELS]
                np.testing.assert_allclose(seen, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_heads_and_none_for_padding(name: str, kind: str) -> None:
    states, mask, _ = padded()
    states[mask == 0] = 0.5
    torch.manual_seed(2)
    head = PooledHead(name, kind, SIZE, 2, dropout=0.0).double()
    states.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: head(values, mask), (states,))
    head(states, mask).square().sum().backward()
    assert states.grad is not None
    assert not states.grad[mask == 0].any()
    assert states.grad[mask == 1].any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
