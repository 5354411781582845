"""Linear layers in int8: the rounding, the product and its gradient against float64, and what is kept for backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from chainrule.kernels.int8 import from_int8, int8_linear, to_int8

pytestmark = pytest.mark.unit


def made(rows: int = 5, outputs: int = 24, inputs: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 2, outputs)[:, None]
    weight = sizes * torch.randn(outputs, inputs, generator=generator)
    values = torch.randn(2, rows, inputs, generator=generator)
    return values, weight, torch.randn(outputs, generator=generator)


def test_rounding_is_within_half_a_step_of_each_row() -> None:
    _, weight, _ = made()
    held, scales = to_int8(weight)
    assert held.dtype == torch.int8
    assert (held.abs().amax(1) == 127).all()
    error = (from_int8(held, scales) - weight).abs()
    assert (error <= 0.5001 * scales[:, None]).all()
    assert torch.allclose(scales, weight.abs().amax(1) / 127)


def test_a_row_of_zeros_stays_one() -> None:
    held, scales = to_int8(torch.zeros(2, 3))
    assert torch.equal(from_int8(held, scales), torch.zeros(2, 3))


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("biased", [True, False])
def test_the_product_is_that_of_the_widened_weight(kind: torch.dtype, tolerance: float, biased: bool) -> None:
    values, weight, bias = made()
    held, scales = to_int8(weight)
    added = bias.double() if biased else None
    wanted = functional.linear(values.double(), held.double() * scales.double()[:, None], added)
    exact = scales.double() if kind == torch.float64 else scales
    found = int8_linear(values.to(kind), held, exact, bias.to(kind) if biased else None)
    assert found.dtype == kind
    assert found.shape == wanted.shape
    assert ((found.double() - wanted).abs() <= tolerance * wanted.abs().amax((0, 1))).all()


def test_autocast_decides_the_number_format() -> None:
    values, weight, bias = made()
    held, scales = to_int8(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert int8_linear(values, held, scales, bias).dtype == torch.bfloat16
    assert int8_linear(values, held, scales, bias).dtype == torch.float32


def test_the_gradient_is_right() -> None:
    values, weight, bias = made(rows=2, outputs=4, inputs=3)
    held, scales = to_int8(weight)
    inputs = values.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: int8_linear(x, held, scales.double(), bias.double()), (inputs,))


def test_no_wide_weight_is_kept_for_backward() -> None:
    values, weight, bias = made(rows=1)
    held, scales = to_int8(weight)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.autograd.backward(int8_linear(values.requires_grad_(), held, scales, bias).sum())
    assert sum(tensor.nbytes for tensor in kept) == held.nbytes + scales.nbytes
