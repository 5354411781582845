"""The kernels of language models against plain torch in float64: rotary attention, adapters, cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from chainrule.kernels import native
from chainrule.kernels.adapter import LowRank, adapted_linears
from chainrule.kernels.attention import attention
from chainrule.kernels.cross_entropy import cross_entropy_gradient
from chainrule.kernels.linear import half_linear, narrow_exactly, rounded, stacked, widen
from chainrule.kernels.rotary import Heads, Sight, rotary_attention

pytestmark = pytest.mark.unit
FORMATS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
Function = Callable[..., torch.Tensor]


@pytest.fixture(params=["compiled", "plain torch"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with both."""
    if request.param == "plain torch":
        monkeypatch.setenv("CHAINRULE_NATIVE", "0")
    elif not native.available():
        pytest.skip("no C++ compiler, or CHAINRULE_NATIVE=0")


def agree(fast: Function, reference: Function, inputs: tuple[torch.Tensor, ...], tolerance: float) -> None:
    """Values and gradients of both, the reference in float64, relative to the size of each tensor."""
    mine = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    ours, theirs = fast(*mine), reference(*exact)
    above = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    above = above.to(ours.dtype).double()
    near(ours, theirs, tolerance)
    gradients = torch.autograd.grad(ours, mine, above.to(ours.dtype))
    for own, other in zip(gradients, torch.autograd.grad(theirs, exact, above), strict=True):
        near(own, other, tolerance)


def near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, least: float = 1e-3) -> None:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach().double(), theirs.detach()
    assert float((ours - theirs).norm()) <= tolerance * (float(theirs.norm()) + least)


def angles(batch: int, length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines as transformers makes them, from positions that start somewhere."""
    positions = torch.arange(length) + torch.randint(0, 50, (batch, 1))
    frequencies = positions[..., None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    both = torch.cat((frequencies, frequencies), -1)
    return both.cos(), both.sin()


def written_out(heads: Heads, table: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None) -> Function:
    """Rotary attention with torch's own attention, as Llama has it."""

    def function(projected: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.view(*part.shape[:2], -1, heads.size).transpose(1, 2)
            for part in torch.split(projected, [n * heads.size for n in (heads.count, heads.keys, heads.keys)], -1)
        )
        cos, sin = (part[:, None].double() for part in table)
        first, second = slice(0, heads.size // 2), slice(heads.size // 2, None)
        turned = [torch.cat((-x[..., second], x[..., first]), -1) for x in (query, key)]
        query, key = query * cos + turned[0] * sin, key * cos + turned[1] * sin
        key, value = (part.repeat_interleave(heads.count // heads.keys, 1) for part in (key, value))
        output = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=0.3)
        return output.transpose(1, 2).flatten(2)

    return function


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "length"), [(8, 17), (32, 17), (64, 17), (128, 17), (8, 300), (32, 256)])
def test_rotary_attention(dtype: torch.dtype, masked: bool, size: int, length: int) -> None:
    torch.manual_seed(size)
    heads, batch = Heads(6, 2, size), 1 if length == 300 else 3
    table = angles(1 if masked else batch, length, size)
    seen = torch.ones(length, length, dtype=torch.bool).tril() & (torch.rand(batch, 1, 1, length) > 0.3)
    mask = (seen | torch.eye(length, dtype=torch.bool)) if masked else None
    projected = torch.randn(batch, length, 10 * size).to(dtype)
    agree(
        lambda x: rotary_attention(x, heads, table, Sight(mask, causal=True), 0.3, 0.0),
        written_out(heads, table, mask),
        (projected,),
        FORMATS[dtype],
    )


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", FORMATS)
def test_rows_side_by_side_do_not_see_each_other(
    dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_NATIVE", "1" if compiled else "0")
    torch.manual_seed(5)
    heads, lengths = Heads(4, 2, 16), (1, 300, 17, 2)
    ends = torch.tensor(lengths).cumsum(0)
    starts = (0, *ends[:-1].tolist())
    table = angles(1, 320, 16)
    row = torch.bucketize(torch.arange(320), ends, right=True)
    mask = ((row[:, None] == row) & torch.ones(320, 320, dtype=torch.bool).tril())[None, None]
    agree(
        lambda x: rotary_attention(x, heads, table, Sight(mask, True, starts), 0.3, 0.0),
        written_out(heads, table, mask),
        (torch.randn(1, 320, 8 * 16).to(dtype),),
        FORMATS[dtype],
    )


def test_one_token_and_one_row() -> None:
    heads = Heads(2, 2, 4)
    projected = torch.randn(1, 1, 24)
    output = rotary_attention(projected, heads, angles(1, 1, 4), Sight(None, causal=True), 1.0, 0.0)
    assert torch.allclose(output, projected[..., 16:], atol=1e-6)  # a token that sees only itself gives its value


def test_a_token_that_may_see_nothing_stays_finite() -> None:
    heads = Heads(2, 1, 8)
    projected = torch.randn(2, 3, 32, requires_grad=True)
    mask = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    output = rotary_attention(projected, heads, angles(1, 3, 8), Sight(mask, causal=False), 1.0, 0.0)
    (gradient,) = torch.autograd.grad(output.sum(), projected)
    assert output.isfinite().all()
    assert gradient.isfinite().all()


def test_rotary_dropout_is_unbiased_and_repeats_with_its_seed() -> None:
    heads = Heads(2, 1, 8)
    projected, table = torch.randn(1, 12, 32), angles(1, 12, 8)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return rotary_attention(projected, heads, table, Sight(None, causal=True), 0.5, 0.25)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    mean = torch.stack([drawn(seed) for seed in range(400)]).mean(0)
    assert (mean - rotary_attention(projected, heads, table, Sight(None, causal=True), 0.5, 0.0)).abs().max() < 0.25


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_fewer_key_heads(causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    agree(
        lambda q, k, v: attention(q, k, v, None, 8**-0.5, 0.0, causal),
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
        (query, key, value),
        FORMATS[torch.float32],
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("outputs", [(24,), (24, 8, 8)])
def test_adapted_linears(outputs: tuple[int, ...], biased: bool) -> None:
    """Values and gradients of the adapters and of what comes in; the weight itself gets none."""
    torch.manual_seed(0)
    weights = [torch.randn(n, 32).bfloat16() / 6 for n in outputs]
    bias = torch.randn(sum(outputs)) if biased else None
    firsts = [torch.randn(4, 32).bfloat16().float() / 6 for _ in outputs]
    seconds = [torch.randn(n, 4).bfloat16().float() for n in outputs]
    scales = [0.5, 2.0, 1.0][: len(outputs)]

    def ours(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        pairs = zip(parts[: len(outputs)], parts[len(outputs) :], scales, strict=True)
        return adapted_linears(x, torch.cat(weights), bias, [LowRank(*pair) for pair in pairs])

    def reference(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        whole = [
            weight.double() + scale * second @ first
            for weight, first, second, scale in zip(
                weights, parts[: len(outputs)], parts[len(outputs) :], scales, strict=True
            )
        ]
        return functional.linear(x, torch.cat(whole), None if bias is None else bias.double())

    inputs = (torch.randn(5, 7, 32).bfloat16(), *firsts, *seconds)
    agree(ours, reference, inputs, FORMATS[torch.bfloat16])


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 5), classes=st.integers(1, 70), size=st.floats(0.1, 200), seed=st.integers(0, 99))
def test_cross_entropy(rows: int, classes: int, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    for dtype, tolerance in FORMATS.items():
        logits, targets = (size * torch.randn(rows, classes)).to(dtype), torch.randint(0, classes, (rows,))
        exact = logits.double().requires_grad_()
        loss = functional.cross_entropy(exact, targets, reduction="sum")
        (wanted,) = torch.autograd.grad(loss, exact)
        value, gradient = cross_entropy_gradient(logits.clone(), targets)
        assert float(value) == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-4)
        assert gradient.dtype == dtype
        near(gradient, wanted, tolerance, least=0.1)


def test_a_frozen_weight_may_be_held_in_bfloat16_alone() -> None:
    exact = torch.nn.Parameter(torch.randn(6, 8).bfloat16().float(), requires_grad=False)
    other = torch.nn.Parameter(torch.randn(6, 8), requires_grad=False)
    before, values = exact.detach().clone(), torch.randn(3, 8).bfloat16()
    result = half_linear(values, exact, None)
    assert narrow_exactly(exact)
    assert not narrow_exactly(other)
    assert exact.dtype == torch.bfloat16
    assert other.dtype == torch.float32
    assert torch.equal(half_linear(values, exact, None), result)
    stack = stacked([exact, exact])
    assert torch.equal(stack[:6], rounded(exact))
    widen(exact)
    widen(other)
    assert torch.equal(exact, before)
