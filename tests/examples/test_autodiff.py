"""Our hundred lines of differentiation against torch in float64, and what docs/chain-rule.md says about them."""

from __future__ import annotations

import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autodiff
import numpy as np
import pytest
import torch
from autodiff import OURS, TORCH, Array, Node, backward
from draw_graph import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "docs" / "chain-rule.md", REPOSITORY / "docs" / "zh" / "chain-rule.md"]

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def assert_same(function: Callable[..., Any], *values: Array) -> None:
    """A function gives the same values and gradients of our nodes and of torch's tensors."""
    nodes = [Node(value) for value in values]
    tensors = [torch.tensor(value, requires_grad=True) for value in values]
    ours, theirs = function(OURS, *nodes), function(TORCH, *tensors)
    assert ours.value.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours.value, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)
    weights = np.random.default_rng(0).normal(size=ours.value.shape)
    loss = ours * Node(weights)
    backward(loss)  # of an array: the gradient of its sum
    (theirs * torch.tensor(weights)).sum().backward()
    for node, tensor in zip(nodes, tensors, strict=True):
        assert tensor.grad is not None
        assert node.gradient.shape == node.value.shape
        np.testing.assert_allclose(node.gradient, tensor.grad.numpy(), rtol=1e-10, atol=1e-11)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.normal(scale=2.0, size=shape) for shape in shapes]


@quick
@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), seeds)
def test_sums_and_products_broadcast(found: Any, seed: int) -> None:
    values = drawn(seed, *found.input_shapes)
    assert_same(lambda ops, a, b: a + b, *values)
    assert_same(lambda ops, a, b: a * b, *values)


@quick
@given(mutually_broadcastable_shapes(signature="(n,k),(k,m)->(n,m)", max_dims=3, max_side=4), seeds)
def test_matrix_products_broadcast_too(found: Any, seed: int) -> None:
    values = drawn(seed, *found.input_shapes)
    assert_same(lambda ops, a, b: a @ b, *values)
    assert_same(lambda ops, a, b: (a @ b).mT, *values)


@quick
@given(shapes, seeds, st.sampled_from(["gelu", "softmax", "standardised"]))
def test_each_operation(shape: tuple[int, ...], seed: int, name: str) -> None:
    assert_same(lambda ops, z: getattr(ops, name)(z), *drawn(seed, shape))


@quick
@given(st.integers(1, 6), st.integers(2, 6), seeds)
def test_cross_entropy(rows: int, classes: int, seed: int) -> None:
    targets = np.random.default_rng(seed).integers(classes, size=rows)
    given = {id(OURS): targets, id(TORCH): torch.tensor(targets)}
    assert_same(lambda ops, logits: ops.cross_entropy(logits, given[id(ops)]), *drawn(seed, (rows, classes)))


def test_softmax_and_cross_entropy_of_large_numbers() -> None:
    assert_same(lambda ops, z: ops.softmax(z), np.array([[1000.0, 999.0, -1000.0]]))


def test_a_value_used_many_times_gets_the_sum() -> None:
    (value,) = drawn(0, (3, 3))
    assert_same(lambda ops, a: a @ a + a * a + a + ops.gelu(a).mT @ a, value)


def test_the_three_ways_agree() -> None:
    hand, ours = autodiff.by_hand(autodiff.SMALL), autodiff.by_autodiff(autodiff.SMALL)
    theirs = autodiff.by_torch(autodiff.SMALL)
    assert hand.keys() == ours.keys() == theirs.keys()
    for name, by_hand in hand.items():
        np.testing.assert_allclose(np.asarray(by_hand), ours[name].gradient, rtol=0, atol=1e-10)
        np.testing.assert_allclose(ours[name].gradient, theirs[name], rtol=0, atol=1e-10)
    values = {name: np.asarray(value) for name, value in autodiff.SMALL.items()}

    def loss(leaves: Any) -> float:
        return float(autodiff.two_layers(OURS, {k: Node(v) for k, v in leaves.items()}, np.array([1]))["L"].value)

    for name in values:
        by_differences = autodiff.by_differences(loss, values, name)
        np.testing.assert_allclose(np.asarray(hand[name]), by_differences, rtol=0, atol=1e-9)


def test_the_example_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with an error where the three, or a whole transformer layer and torch's, are more than 1e-10 apart."""
    runpy.run_path(str(REPOSITORY / "examples" / "autodiff.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for page in PAGES:
        assert same(blocks(page, "text")[3], printed)


def test_the_programs_of_the_page_print_what_it_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin has the same programs (tests/house); what it says that they print is compared here."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec("\n".join(blocks(PAGES[0], "python")), {})
    printed = capsys.readouterr().out
    for page in PAGES:
        of_first, of_second, _, of_third = blocks(page, "text")[4:]
        assert same(of_first + of_second + of_third, printed)


@pytest.mark.parametrize("page", PAGES, ids=["english", "chinese"])
def test_every_number_worked_out_on_paper_is_so(page: Path) -> None:
    """Each with four digits is one of the network's values or gradients, or lies between two of them."""
    nodes = autodiff.by_autodiff(autodiff.SMALL)
    z1 = nodes["z1"].value
    below = np.array([[0.5 * (1 + math.erf(z / math.sqrt(2))) for z in z1[0]]])
    density = np.exp(-(z1**2) / 2) / math.sqrt(2 * math.pi)
    known = [array for node in nodes.values() for array in (node.value, node.gradient)]
    known += [below, density, below + z1 * density, autodiff.softmax(nodes["z2"]).value]
    right = {f"{abs(number):.4f}" for array in known for number in np.ravel(array)}
    shown = re.findall(r"\d\.\d{4}", "".join(blocks(page, "text")[:3]))
    assert len(shown) > 50
    assert set(shown) <= right


def test_the_picture_is_drawn_from_these_numbers() -> None:
    kept = (REPOSITORY / "docs" / "images" / "chain-rule.svg").read_text(encoding="utf-8")
    assert kept == draw(autodiff.by_autodiff(autodiff.SMALL)), (
        "python examples/draw_graph.py docs/images/chain-rule.svg"
    )


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def same(shown: str, printed: str) -> bool:
    """Whether two texts are the same; numbers with an exponent may differ by a factor of two, or both be noise."""
    exponent = re.compile(r"\s*\d(?:\.\d)?e[-+]\d+")
    if exponent.sub("…", shown).split() != exponent.sub("…", printed).split():
        return False
    pairs = zip(exponent.findall(shown), exponent.findall(printed), strict=True)
    return all(0.5 <= float(a) / float(b) <= 2 or max(float(a), float(b)) < 1e-9 for a, b in pairs if float(b))
