"""The compiled AdamW against torch's, dense and with late updates for unused rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from chainrule.kernels import native
from chainrule.kernels.adamw import NativeAdamW, catch_up, gradient_norm
from chainrule.kernels.embedding import embedding
from chainrule.kernels.linear import rounded

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not native.available(), reason="no C++ compiler, or CHAINRULE_NATIVE=0"),
]
BETAS, EPSILON = (0.9, 0.999), 1e-8


def rate(step: int) -> float:
    """A warm-up and a decay, so that every step has another learning rate."""
    return 1e-2 * min((step + 1) / 5, (40 - step) / 35)


def exact_adamw(parameter: torch.Tensor, decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([parameter], lr=1.0, betas=BETAS, eps=EPSILON, weight_decay=decay)


def native_adamw(parameter: torch.Tensor, decay: float) -> NativeAdamW:
    return NativeAdamW([{"params": [parameter], "lr": 1.0, "weight_decay": decay}], BETAS, EPSILON)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 77, 40_000])
def test_it_is_torchs_adamw(count: int, decay: float) -> None:
    torch.manual_seed(0)
    mine = torch.randn(count).requires_grad_()
    exact = mine.detach().double().requires_grad_()
    ours, theirs = native_adamw(mine, decay), exact_adamw(exact, decay)
    for step in range(12):
        gradient = torch.randn(count) * 10.0 ** (step % 3 - 1)
        mine.grad, exact.grad = gradient * 4, gradient.double()
        ours.gradient_scale = 0.25
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.step()
    assert ours.gradient_scale == 1.0
    assert torch.allclose(mine.double(), exact, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rows_without_a_gradient_end_where_dense_adamw_puts_them(decay: float) -> None:
    """Rows are used always, often, once, and never; what is read in between is up to date too."""
    torch.manual_seed(1)
    mine = torch.randn(60, 5).requires_grad_()
    exact = mine.detach().double().requires_grad_()
    ours, theirs = native_adamw(mine, decay), exact_adamw(exact, decay)
    for step in range(40):
        ids = torch.cat([torch.tensor([0, 0]), torch.randint(0, 20, (6,)), torch.tensor([20 + step % 30])])
        weight = torch.randn(len(ids), 5)
        for parameter, optimizer in ((mine, ours), (exact, theirs)):
            optimizer.param_groups[0]["lr"] = rate(step)
            catch_up(parameter, ids)
            read = embedding(mine, ids, None) if parameter is mine else functional.embedding(ids, exact)
            (read * weight.to(read.dtype)).sum().backward()  # type: ignore[no-untyped-call]
            if parameter is mine:
                assert torch.allclose(mine[ids].double(), exact[ids], atol=1e-6)
            optimizer.step()
            optimizer.zero_grad()
    catch_up(mine)
    assert torch.allclose(mine.double(), exact, atol=2e-6)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.allclose(ours.state[mine][name].double(), theirs.state[exact][name], atol=1e-6)


def test_it_reads_bfloat16_gradients_and_keeps_the_rounded_copy() -> None:
    torch.manual_seed(2)
    mine = torch.nn.Parameter(torch.randn(300, 70))
    exact = mine.detach().double().requires_grad_()
    ours, theirs = native_adamw(mine, 0.1), exact_adamw(exact, 0.1)
    copy = rounded(mine)
    mine.grad_dtype = None
    for _ in range(3):
        mine.grad = torch.randn(300, 70).bfloat16()
        exact.grad = mine.grad.double()
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    assert torch.allclose(mine.double(), exact, atol=1e-6)
    assert rounded(mine) is copy
    assert torch.equal(copy, mine.detach().bfloat16())


def test_the_norm_counts_dense_and_sparse_gradients() -> None:
    dense, rows = torch.randn(70_000), torch.randn(3, 4)
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 5, 8]]), rows, (9, 4), is_coalesced=True, check_invariants=True)
    expected = float((dense.double().square().sum() + rows.double().square().sum()).sqrt())
    assert gradient_norm([dense, sparse]) == pytest.approx(expected, rel=1e-6)
    assert gradient_norm([dense.double(), rows.double()]) == pytest.approx(expected, rel=1e-9)


def test_it_trains_with_an_infinite_gradient_visible() -> None:
    """A gradient that is not finite must be seen in the norm, not lost in the kernel."""
    gradient = torch.ones(20_000)
    gradient[7] = float("inf")
    assert gradient_norm([gradient]) == float("inf")
    gradient[7] = float("nan")
    assert gradient_norm([gradient]) != gradient_norm([gradient])
