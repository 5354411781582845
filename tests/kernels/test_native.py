"""The compiled kernels against plain torch in float64, gradients and dropout masks included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from chainrule.kernels import native
from chainrule.kernels.activation import bias_gelu, gated_silu
from chainrule.kernels.attention import attention, self_attention
from chainrule.kernels.dropout import draw_key, drop_levels, dropout
from chainrule.kernels.embedding import coalesce, embedding, sum_by_row
from chainrule.kernels.linear import column_sums, half_linear, half_linears, rounded, stacked
from chainrule.kernels.norm import norm, residual_norm, root_norm

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not native.available(), reason="no C++ compiler, or CHAINRULE_NATIVE=0"),
]
FORMATS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
Function = Callable[..., torch.Tensor]


def kept(rows: int, columns: int, probability: float, key: tuple[int, int]) -> torch.Tensor:
    """What a mask must be: the hash of cpp/common.hpp in numpy, as (rows, columns) factors."""
    level, groups = drop_levels(probability), (columns + 3) // 4
    with np.errstate(over="ignore"):
        x = np.arange(rows * groups, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(key[0])
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x += np.uint32(key[1])
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    drawn = x.astype("<u4").view(np.uint8).reshape(rows, groups * 4)[:, :columns]
    return torch.from_numpy((drawn >= level) * (256 / (256 - level)))


def key_of(seed: int) -> tuple[int, int]:
    torch.manual_seed(seed)
    return draw_key()


def agree(fast: Function, reference: Function, inputs: tuple[torch.Tensor | None, ...], tolerance: float) -> None:
    """Values and gradients of both, the reference in float64, relative to the size of each tensor."""
    mine = [None if x is None else x.clone().requires_grad_() for x in inputs]
    exact = [None if x is None else x.double().requires_grad_() for x in inputs]
    ours, theirs = fast(*mine), reference(*exact)
    weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = weight.to(ours.dtype).double()  # the same gradient from above for both
    ours.backward(weight.to(ours.dtype))  # type: ignore[no-untyped-call]
    theirs.backward(weight)  # type: ignore[no-untyped-call]
    pairs: list[Any] = [(ours, theirs)]
    pairs += [(a.grad, b.grad) for a, b in zip(mine, exact, strict=True) if a is not None and b is not None]
    for number, (a, b) in enumerate(pairs):
        assert a.shape == b.shape
        assert torch.isfinite(a.to_dense()).all()
        assert (a.to_dense().double() - b).norm() <= tolerance * (b.norm() + 1e-3), number


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 384), (37, 53), (300, 128)])
def test_dropout(rows: int, columns: int, dtype: torch.dtype) -> None:
    values = torch.randn(rows, columns).to(dtype)
    factors = kept(rows, columns, 0.3, key_of(3))
    torch.manual_seed(3)
    agree(lambda x: dropout(x, 0.3), lambda x: x * factors, (values,), FORMATS[dtype])


def test_the_bytes_of_the_hash_are_even_and_their_neighbours_unrelated() -> None:
    """The share that is dropped, and the correlation with the next element, row and key, within five deviations."""
    drawn = torch.stack([kept(1000, 256, 0.25, key_of(seed)) > 0 for seed in range(4)]).double()
    count, share = drawn.numel(), 1 - drop_levels(0.25) / 256
    assert abs(drawn.mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    centred = drawn - share
    for shifted in (centred.roll(1, 2), centred.roll(1, 1), centred.roll(1, 0), centred.roll(4, 2)):
        assert abs((centred * shifted).mean()) / (share * (1 - share)) < 5 / count**0.5


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (65, 32), (140, 384)])
def test_residual_norm(rows: int, columns: int, probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values, residual = (torch.randn(rows, columns).to(dtype) for _ in range(2))
    bias, weight, shift = torch.randn(columns), torch.rand(columns) + 0.5, torch.randn(columns)
    factors = kept(rows, columns, probability, key_of(4)) if probability else torch.ones(())

    def reference(x: torch.Tensor, b: torch.Tensor, r: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm((x + b) * factors + r, (columns,), w, s, 1e-5)

    torch.manual_seed(4)
    agree(
        lambda x, b, r, w, s: residual_norm(x, b, r, w, s, 1e-5, probability),
        reference,
        (values, bias, residual, weight, shift),
        FORMATS[dtype],
    )


@pytest.mark.parametrize("dtype", FORMATS)
def test_plain_norms(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(3, 5, 24).to(dtype), torch.rand(24) + 0.5, torch.randn(24)
    agree(
        lambda x, w, s: norm(x, w, s, 1e-6),
        lambda x, w, s: functional.layer_norm(x, (24,), w, s, 1e-6),
        inputs,
        FORMATS[dtype],
    )
    agree(
        lambda x, w: root_norm(x, w, 1e-6),
        lambda x, w: functional.rms_norm(x, (24,), w, 1e-6),
        inputs[:2],
        FORMATS[dtype],
    )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("biased", [True, False])
def test_gelu(biased: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    values, bias = (3 * torch.randn(130, 131)).to(dtype), torch.randn(131) if biased else None
    agree(bias_gelu, lambda x, b: functional.gelu(x if b is None else x + b), (values, bias), FORMATS[dtype])


@pytest.mark.parametrize("dtype", FORMATS)
def test_gelu_far_from_zero(dtype: torch.dtype) -> None:
    far = torch.tensor([-1e30, -50.0, -9.0, -0.0, 0.0, 9.0, 50.0, 1e30]).to(dtype).requires_grad_()
    result = bias_gelu(far, None)
    assert torch.allclose(result, functional.gelu(far), atol=1e-6 if dtype == torch.float32 else 1e-4)
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert far.grad is not None
    assert torch.allclose(far.grad.float(), torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]), atol=1e-6)
    assert torch.isnan(bias_gelu(torch.tensor([float("nan")], dtype=dtype), None)).all()


def test_gelu_in_bfloat16_is_within_its_rounding() -> None:
    """Every bfloat16 number there is between -8 and 8."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    x = every[every.abs() <= 8].clone().requires_grad_()
    exact = x.detach().double().requires_grad_()
    result, wanted = bias_gelu(x, None), functional.gelu(exact)
    result.sum().backward()  # type: ignore[no-untyped-call]
    wanted.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert exact.grad is not None
    assert ((result.double() - wanted).abs() <= wanted.abs() / 256 + 1e-4).all()
    assert ((x.grad.double() - exact.grad).abs() <= exact.grad.abs() / 256 + 1.2e-4).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_gated_silu(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    inputs = ((4 * torch.randn(2, 9, 66)).to(dtype),)
    agree(gated_silu, lambda x: functional.silu(x[..., :33]) * x[..., 33:], inputs, FORMATS[dtype])


def seen_keys(kind: str, batch: int, queries: int, keys: int) -> torch.Tensor | None:
    """A boolean mask in one of the shapes transformers makes."""
    if kind in ("none", "causal"):
        return None
    seen = torch.rand(batch, 1, 1 if kind == "padding" else queries, keys) > 0.4
    seen[..., 0] = True
    return seen.expand(batch, 1, queries, keys)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kind", ["none", "padding", "own", "causal"])
@pytest.mark.parametrize(("size", "length"), [(32, 17), (64, 1), (128, 40)])
def test_attention(size: int, length: int, kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    inputs = tuple(torch.randn(2, 3, length, size).to(dtype) for _ in range(3))
    mask = seen_keys(kind, 2, length, length)
    factors = kept(2 * 3 * length, length, 0.2, key_of(6)).view(2, 3, length, length)

    def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = query @ key.transpose(-1, -2) * size**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        if kind == "causal":
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -1e30)
        return (torch.softmax(scores, -1) * factors) @ value

    torch.manual_seed(6)
    agree(
        lambda q, k, v: attention(q, k, v, mask, size**-0.5, 0.2, kind == "causal"), reference, inputs, FORMATS[dtype]
    )


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_query_that_sees_nothing_gets_the_mean(dtype: torch.dtype) -> None:
    query = torch.randn(1, 1, 2, 8).to(dtype).requires_grad_()
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    result = attention(query, query, query, mask, 1.0, 0.0)
    assert torch.allclose(result.float(), query.mean(2, keepdim=True).expand(1, 1, 2, 8).float(), atol=1e-2)
    result.float().sum().backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


def test_what_is_masked_gets_nothing_at_all() -> None:
    """Not even 1e-39: products of such numbers take ten times as long."""
    query = torch.randn(1, 1, 4, 8, requires_grad=True)
    key, value = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(2))
    mask = torch.tensor([True, True, True, False]).expand(1, 1, 4, 4)
    attention(query, key, value, mask, 1.0, 0.1).sum().backward()  # type: ignore[no-untyped-call]
    for tensor in (key, value):
        assert tensor.grad is not None
        assert not tensor.grad[0, 0, 3].any()


def test_half_linear() -> None:
    torch.manual_seed(7)
    values, weight, bias = torch.randn(4, 9, 32).bfloat16(), torch.randn(24, 32).bfloat16().float(), torch.randn(24)
    agree(half_linear, functional.linear, (values, weight, bias), 2e-2)


def test_the_rounded_copy_follows_its_weight() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    assert rounded(weight) is rounded(weight)
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(rounded(weight), weight.detach().bfloat16())
    other = torch.nn.Parameter(torch.randn(2, 2))
    with torch.inference_mode():
        assert not rounded(other).is_inference()


def test_several_layers_in_one_product() -> None:
    torch.manual_seed(8)
    values = torch.randn(3, 5, 16).bfloat16()
    weights = [torch.randn(size, 16).bfloat16().float() for size in (8, 8, 24)]
    biases = [torch.randn(size) for size in (8, 8, 24)]

    def fast(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return half_linears(x, rest[:3], rest[3:], stacked(rest[:3]))

    def reference(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.linear(x, w, b) for w, b in zip(rest[:3], rest[3:], strict=True)], -1)

    agree(fast, reference, (values, *weights, *biases), 2e-2)
    with torch.no_grad():
        weights[1].mul_(3)
    assert torch.equal(stacked(weights), torch.cat(weights).bfloat16())
    assert stacked(weights) is stacked(weights)
    for some in (weights[1:], weights):
        assert torch.equal(stacked(some), torch.cat(some).bfloat16())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("way", ["products", "head by head", "tiles"])
@pytest.mark.parametrize("kind", ["none", "padding", "empty"])
@pytest.mark.parametrize(("batch", "size", "length"), [(1, 8, 1), (2, 32, 9), (3, 64, 16), (2, 128, 41), (1, 20, 70)])
def test_self_attention(
    batch: int, size: int, length: int, kind: str, way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the products of torch, head by head, and on tiles where there are any: values, gradients, mask of dropout."""
    monkeypatch.setenv("CHAINRULE_ATTENTION", way)
    if way != "tiles":
        monkeypatch.setattr(native, "tiles", lambda: False)
    torch.manual_seed(10)
    heads, projected = 3, torch.randn(batch, length, 3 * 3 * size).to(dtype)
    mask = seen_keys("padding", batch, length, length) if kind != "none" else None
    if mask is not None and kind == "empty":
        mask = torch.zeros_like(mask[:, :, :1]).expand(mask.shape)
    factors = kept(batch * heads * length, length, 0.2, key_of(11)).view(batch, heads, length, length)

    def reference(x: torch.Tensor) -> torch.Tensor:
        query, key, value = x.view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) * 0.3 * size**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        context: torch.Tensor = (torch.softmax(scores, -1) * factors) @ value
        return context.transpose(1, 2).reshape(batch, length, -1)

    torch.manual_seed(11)
    if kind == "empty":  # a row that sees nothing: the mean, and gradients that are numbers
        inputs = projected.requires_grad_()
        result = self_attention(inputs, heads, mask, 0.3 * size**-0.5, 0.2)
        assert torch.allclose(result.double(), reference(projected.detach().double()), atol=3e-2)
        result.float().sum().backward()  # type: ignore[no-untyped-call]
        assert inputs.grad is not None
        assert torch.isfinite(inputs.grad).all()
        return
    agree(lambda x: self_attention(x, heads, mask, 0.3 * size**-0.5, 0.2), reference, (projected,), FORMATS[dtype])


@pytest.mark.parametrize("dtype", FORMATS)
def test_column_sums(dtype: torch.dtype) -> None:
    values = torch.randn(999, 65).to(dtype)
    assert torch.allclose(column_sums(values).double(), values.double().sum(0), atol=1e-3)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 20), st.sampled_from(sorted(FORMATS, key=str))
)
@settings(max_examples=30, deadline=None)
def test_rows_with_the_same_id_are_summed(ids: list[int], columns: int, dtype: torch.dtype) -> None:
    values = torch.randn(len(ids), columns).to(dtype)
    used, sums = sum_by_row(torch.tensor(ids), values)
    assert used.tolist() == sorted(set(ids))
    for row, total in zip(used.tolist(), sums, strict=True):
        assert torch.allclose(total, values[torch.tensor(ids) == row].float().sum(0), atol=1e-5)


def test_the_gradient_of_a_table_holds_the_used_rows() -> None:
    weight = torch.randn(50, 6, requires_grad=True)
    ids = torch.tensor([[3, 3, 7], [0, 7, 3]])
    for _ in range(2):  # two micro-batches
        embedding(weight, ids, 0).square().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    gradient = coalesce(weight.grad)
    dense = weight.detach().clone().requires_grad_()
    (2 * functional.embedding(ids, dense, 0).square().sum()).backward()  # type: ignore[no-untyped-call]
    assert dense.grad is not None
    assert torch.allclose(gradient.to_dense(), dense.grad, atol=1e-5)
    assert gradient.indices()[0].tolist() == [0, 3, 7]


@pytest.mark.parametrize("switch", [{"CHAINRULE_NATIVE": "0"}, {"PATH": ""}, {"CXX": "false"}])
def test_without_compiled_kernels_plain_torch_does_the_same(switch: dict[str, str], tmp_path: Path) -> None:
    """Switched off, without a compiler, and with one that fails; in a process of its own, with an empty cache."""
    code = (
        "import torch; from chainrule.kernels import native; from chainrule.kernels.norm import residual_norm;"
        "assert not native.available(); torch.manual_seed(0); x = torch.randn(5, 8); w = torch.ones(8);"
        "print(residual_norm(x, w, x, w, w, 1e-5, 0.0).double().sum().item())"
    )
    if "CXX" in switch:
        failing = tmp_path / "false"
        failing.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        failing.chmod(0o755)
        switch = {"CXX": str(failing)}
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "CHAINRULE_CACHE": str(tmp_path / "cache"), **switch}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    torch.manual_seed(0)
    x, w = torch.randn(5, 8), torch.ones(8)
    assert float(done.stdout) == pytest.approx(residual_norm(x, w, x, w, w, 1e-5, 0.0).double().sum().item(), abs=1e-4)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("dtype", FORMATS)
def test_several_threads_make_the_same_numbers_every_time(dtype: torch.dtype) -> None:
    torch.manual_seed(12)
    values, residual = torch.randn(500, 96).to(dtype), torch.randn(500, 96).to(dtype)
    weight, shift = torch.rand(96) + 0.5, torch.randn(96)
    heads = tuple(torch.randn(4, 3, 40, 32).to(dtype) for _ in range(3))

    def normed(x: torch.Tensor, b: torch.Tensor, r: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x + b + r, (96,), w, s, 1e-5)

    def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.softmax(query @ key.transpose(-1, -2) * 0.2, -1) @ value

    agree(
        lambda x, b, r, w, s: residual_norm(x, b, r, w, s, 1e-5, 0.0),
        normed,
        (values, shift, residual, weight, shift),
        FORMATS[dtype],
    )
    agree(bias_gelu, lambda x, b: functional.gelu(x + b), (values, shift), FORMATS[dtype])
    agree(lambda q, k, v: attention(q, k, v, None, 0.2, 0.0), attended, heads, FORMATS[dtype])
    sums = [column_sums(values) for _ in range(10)]
    assert all(torch.equal(sums[0], other) for other in sums)
    assert torch.allclose(sums[0].double(), values.double().sum(0), atol=1e-3)
