"""The chain rule three times over: by hand, by a hundred lines of reverse-mode differentiation, and by torch.

    python examples/autodiff.py

The story is in docs/chain-rule.md. Everything is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

Array = np.ndarray[Any, np.dtype[Any]]
Pull = Callable[[Array], Array]

# Reverse-mode automatic differentiation


class Node:
    """A value that remembers what it was made from.

    Attributes:
        value: an array of any shape.
        parents: what it was made from, each with its vector-Jacobian product: a function from the loss's gradient with
            respect to this value to the part of the parent's gradient that comes this way.
        gradient: the loss's, with respect to this value and of its shape; complete after `backward`.
    """

    def __init__(self, value: Any, parents: Sequence[tuple[Node, Pull]] = ()) -> None:
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = parents
        self.gradient = np.zeros_like(self.value)

    def __add__(self, other: Node) -> Node:
        parents = [(self, lambda g: summed(g, self)), (other, lambda g: summed(g, other))]
        return Node(self.value + other.value, parents)

    def __mul__(self, other: Node) -> Node:
        parents = [
            (self, lambda g: summed(g * other.value, self)),
            (other, lambda g: summed(g * self.value, other)),
        ]
        return Node(self.value * other.value, parents)

    def __matmul__(self, other: Node) -> Node:
        parents = [
            (self, lambda g: summed(g @ other.value.swapaxes(-1, -2), self)),
            (other, lambda g: summed(self.value.swapaxes(-1, -2) @ g, other)),
        ]
        return Node(self.value @ other.value, parents)

    @property
    def mT(self) -> Node:  # noqa: N802  (torch's name for it)
        """The last two axes exchanged."""
        return Node(self.value.swapaxes(-1, -2), [(self, lambda g: g.swapaxes(-1, -2))])


def summed(gradient: Array, node: Node) -> Array:
    """Undo broadcasting: a number that was used in several places gets the sum of the gradients from there."""
    new = tuple(range(gradient.ndim - node.value.ndim))
    stretched = tuple(len(new) + axis for axis, size in enumerate(node.value.shape) if size == 1)
    total: Array = gradient.sum(new + stretched).reshape(node.value.shape)
    return total


def gelu(z: Node) -> Node:
    """z · Φ(z), Φ the standard normal distribution. Hendrycks and Gimpel (2016)."""
    below = 0.5 + 0.5 * np.vectorize(math.erf, otypes=[float])(z.value / math.sqrt(2))
    density = np.exp(-(z.value**2) / 2) / math.sqrt(2 * math.pi)
    return Node(z.value * below, [(z, lambda g: g * (below + z.value * density))])


def softmax(z: Node) -> Node:
    """Positive numbers in the proportions of exp(z), with sum 1 along the last axis."""
    powers = np.exp(z.value - z.value.max(-1, keepdims=True))
    p = powers / powers.sum(-1, keepdims=True)
    return Node(p, [(z, lambda g: p * (g - (g * p).sum(-1, keepdims=True)))])


def standardised(x: Node, epsilon: float = 1e-5) -> Node:
    """Mean 0 and variance 1 along the last axis: layer norm without its weight and bias. Ba et al. (2016)."""
    centred = x.value - x.value.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    y = centred * scale

    def pull(g: Array) -> Array:
        below: Array = scale * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
        return below

    return Node(y, [(x, pull)])


def cross_entropy(logits: Node, targets: Array) -> Node:
    """The mean over rows of −log p, p the probability of the row's target."""
    rows = np.arange(len(targets))
    p = softmax(logits).value
    is_target = np.zeros_like(p)
    is_target[rows, targets] = 1.0
    return Node(-np.log(p[rows, targets]).mean(), [(logits, lambda g: g * (p - is_target) / len(targets))])


def backward(loss: Node) -> None:
    """Fill in the gradients of all that a loss was made from, from the loss back: a node after all that used it."""
    order: list[Node] = []
    seen: set[int] = set()

    def visit(node: Node) -> None:
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.parents:
                visit(parent)
            order.append(node)

    visit(loss)
    loss.gradient = np.ones_like(loss.value)
    for node in reversed(order):
        for parent, pull in node.parents:
            parent.gradient = parent.gradient + pull(node.gradient)


# Two networks, for our operations and for torch's

OURS = SimpleNamespace(softmax=softmax, gelu=gelu, standardised=standardised, cross_entropy=cross_entropy)
TORCH = SimpleNamespace(
    softmax=lambda z: torch.softmax(z, -1),
    gelu=functional.gelu,
    standardised=lambda x: functional.layer_norm(x, x.shape[-1:]),
    cross_entropy=functional.cross_entropy,
)

# The network of docs/chain-rule.md: one row of two features, two hidden units, two classes; the second is the target.
SMALL: Mapping[str, Any] = {
    "x": [[1.0, 2.0]],
    "W1": [[0.4, -0.6], [0.3, 0.1]],
    "b1": [0.0, -0.1],
    "W2": [[0.5, -0.3], [0.2, 0.8]],
    "b2": [0.1, 0.0],
}
TARGET = 1


def two_layers(ops: Any, leaves: Mapping[str, Any], targets: Any) -> dict[str, Any]:
    """Every value of gelu(x · W1 + b1) · W2 + b2 with cross-entropy, by name."""
    z1 = leaves["x"] @ leaves["W1"] + leaves["b1"]
    h = ops.gelu(z1)
    z2 = h @ leaves["W2"] + leaves["b2"]
    return {**leaves, "z1": z1, "h": h, "z2": z2, "L": ops.cross_entropy(z2, targets)}


def transformer_layer(ops: Any, leaves: Mapping[str, Any], targets: Any) -> Any:
    """The loss of a transformer layer with one head (Vaswani et al., 2017; norms first) under an output layer."""
    x = leaves["x"]
    normed = ops.standardised(x) * leaves["norm1"] + leaves["shift1"]
    query, key, value = (normed @ leaves[name] for name in ("query", "key", "value"))
    x = x + ops.softmax(query @ key.mT * leaves["scale"]) @ value @ leaves["out"]
    normed = ops.standardised(x) * leaves["norm2"] + leaves["shift2"]
    x = x + ops.gelu(normed @ leaves["up"] + leaves["up_bias"]) @ leaves["down"] + leaves["down_bias"]
    return ops.cross_entropy(x @ leaves["head"], targets)


def layer_leaves(tokens: int = 5, width: int = 8, classes: int = 6) -> dict[str, Array]:
    """Random inputs and parameters for `transformer_layer`."""
    draw = np.random.default_rng(0).normal
    shapes = {
        **{"x": (tokens, width), "norm1": (width,), "shift1": (width,), "norm2": (width,), "shift2": (width,)},
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        **{"up": (width, 4 * width), "up_bias": (4 * width,), "down": (4 * width, width), "down_bias": (width,)},
        **{"head": (width, classes)},
    }
    return {name: draw(scale=0.5, size=shape) for name, shape in shapes.items()} | {"scale": np.array(width**-0.5)}


# The same gradients in four ways


def by_autodiff(values: Mapping[str, Any]) -> dict[str, Node]:
    """Our own: the nodes of the small network, with their gradients."""
    nodes = two_layers(OURS, {name: Node(value) for name, value in values.items()}, np.array([TARGET]))
    backward(nodes["L"])
    return nodes


def by_torch(values: Mapping[str, Any]) -> dict[str, Array]:
    """Torch's gradients of the small network."""
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    tensors = two_layers(TORCH, leaves, torch.tensor([TARGET]))
    for tensor in tensors.values():
        tensor.retain_grad()
    tensors["L"].backward()
    return {name: tensor.grad.numpy() for name, tensor in tensors.items()}


def by_hand(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every partial derivative of the small network's loss, written out: the lines of docs/chain-rule.md."""
    ((x1, x2),) = values["x"]
    (w11, w12), (w21, w22) = values["W1"]
    (v11, v12), (v21, v22) = values["W2"]
    b1, b2 = values["b1"]
    c1, c2 = values["b2"]

    # forward
    z1, z2 = x1 * w11 + x2 * w21 + b1, x1 * w12 + x2 * w22 + b2
    below1, below2 = (0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (z1, z2))
    h1, h2 = z1 * below1, z2 * below2
    s1, s2 = h1 * v11 + h2 * v21 + c1, h1 * v12 + h2 * v22 + c2
    p1 = math.exp(s1) / (math.exp(s1) + math.exp(s2))

    # backward, from L = −log p2
    ds1, ds2 = p1, (1 - p1) - 1
    dv11, dv12, dv21, dv22 = h1 * ds1, h1 * ds2, h2 * ds1, h2 * ds2
    dh1, dh2 = v11 * ds1 + v12 * ds2, v21 * ds1 + v22 * ds2
    slope1, slope2 = (
        below + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z, below in ((z1, below1), (z2, below2))
    )
    dz1, dz2 = slope1 * dh1, slope2 * dh2
    dw11, dw12, dw21, dw22 = x1 * dz1, x1 * dz2, x2 * dz1, x2 * dz2
    dx1, dx2 = w11 * dz1 + w12 * dz2, w21 * dz1 + w22 * dz2
    return {
        "L": 1.0,
        "z2": [[ds1, ds2]],
        "W2": [[dv11, dv12], [dv21, dv22]],
        "b2": [ds1, ds2],
        "h": [[dh1, dh2]],
        "z1": [[dz1, dz2]],
        "W1": [[dw11, dw12], [dw21, dw22]],
        "b1": [dz1, dz2],
        "x": [[dx1, dx2]],
    }


def by_differences(loss: Callable[[Mapping[str, Array]], float], leaves: Mapping[str, Array], name: str) -> Array:
    """Central differences of a loss with respect to one leaf, number by number."""
    step, gradient = 1e-5, np.zeros_like(leaves[name])
    for place in np.ndindex(gradient.shape):
        there = leaves[name].copy()
        there[place] += step
        ahead = loss({**leaves, name: there})
        there[place] -= 2 * step
        gradient[place] = (ahead - loss({**leaves, name: there})) / (2 * step)
    return gradient


def compare_small() -> float:
    """Print the gradients of the small network by hand, by our own and by torch; return the greatest difference."""
    hand, ours, theirs = by_hand(SMALL), by_autodiff(SMALL), by_torch(SMALL)
    greatest = 0.0
    print(f"{'∂L/∂':8}{'by hand':>18}{'autodiff':>18}{'torch':>18}")
    for name, by_our_hand in hand.items():
        columns = [np.asarray(by_our_hand), ours[name].gradient, theirs[name]]
        greatest = max(greatest, *(float(abs(a - b).max()) for a in columns for b in columns))
        for place in np.ndindex(columns[0].shape):
            label = name + ("[" + ",".join(str(axis + 1) for axis in place) + "]" if place else "")
            print(f"{label:8}" + "".join(f"{column[place]:18.12f}" for column in columns))
    print(f"greatest difference: {greatest:.1e}\n")
    return greatest


def compare_layer() -> float:
    """Print how far our gradients of a transformer layer are from torch's and from differences; return the first."""
    values, targets = layer_leaves(), np.array([0, 3, 5, 1, 3])
    ours = {name: Node(value) for name, value in values.items()}
    backward(transformer_layer(OURS, ours, targets))
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    transformer_layer(TORCH, theirs, torch.tensor(targets)).backward()

    def loss(leaves: Mapping[str, Array]) -> float:
        made: Node = transformer_layer(OURS, {name: Node(value) for name, value in leaves.items()}, targets)
        return float(made.value)

    print(f"{'a transformer layer':20}{'numbers':>9}{'autodiff − torch':>20}{'autodiff − differences':>26}")
    greatest = 0.0
    for name, node in ours.items():
        tensor = theirs[name].grad
        from_torch = float(abs(node.gradient - tensor.numpy()).max()) if tensor is not None else math.inf
        from_differences = float(abs(node.gradient - by_differences(loss, values, name)).max())
        greatest = max(greatest, from_torch)
        print(f"{name:20}{node.value.size:9}{from_torch:20.1e}{from_differences:26.1e}")
    print(f"greatest difference: {greatest:.1e}")
    return greatest


if __name__ == "__main__":
    if max(compare_small(), compare_layer()) > 1e-10:
        raise SystemExit("The gradients differ.")
