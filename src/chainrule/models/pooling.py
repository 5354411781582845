"""From the states of a row's tokens to one vector or to logits: poolings and heads by name. Padding counts nowhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (3, 4, 5)  # of the convolutions, in tokens: Kim (2014), section 3.1
CHANNELS = 100  # of each width

Pool = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def first(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The first token's state, for rows padded on the right.

    Args:
        states: (b, t, d).
        mask: (b, t), 1 where there is a token; None where nothing is padded.

    Returns:
        (b, d), here and below.
    """
    return states[:, 0]


def last(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The last token's state, wherever rows are padded."""
    if mask is None:
        return states[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device).mul(mask != 0).argmax(1)
    return states[torch.arange(len(states), device=states.device), places]


def mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean over tokens."""
    if mask is None:
        return states.mean(1)
    here = (mask != 0)[..., None]
    return states.masked_fill(~here, 0).sum(1) / here.sum(1).to(states.dtype)


def maximum(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The largest value over tokens, in each dimension."""
    if mask is not None:
        states = states.masked_fill((mask == 0)[..., None], -torch.inf)
    return states.amax(1)


class Attention(nn.Module):
    """A mean weighted by softmax(u · tanh(W h + b)): Yang et al. (2016), equations 5 to 7."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(size, size)
        self.query = nn.Linear(size, 1, bias=False)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        scores = self.query(torch.tanh(self.hidden(states)))
        if mask is not None:
            scores = scores.masked_fill((mask == 0)[..., None], -torch.inf)
        weights: torch.Tensor = scores.softmax(1).to(states.dtype)
        return (weights * states).sum(1)


class Convolutions(nn.Module):
    """Convolutions over tokens, each followed by a rectifier: Kim (2014), equation 2, one output a token.

    Beyond its ends a row is zero, and so is padding: a row gives the same alone and padded.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(size, CHANNELS, width) for width in WIDTHS)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if mask is not None:
            states = states.masked_fill((mask == 0)[..., None], 0)
        values = states.transpose(1, 2)
        found = [
            layer(functional.pad(values, ((width - 1) // 2, width // 2)))
            for width, layer in zip(WIDTHS, self.filters, strict=True)
        ]
        return torch.relu(torch.cat(found, 1)).transpose(1, 2)


class PooledHead(nn.Module):
    """Pooling and what stands on it.

    linear: dropout and a linear layer. mlp: a hidden layer of the model's size with tanh before it. cnn: convolutions
    over tokens below the pooling.
    """

    def __init__(self, pooling: str, kind: str, size: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = Convolutions(size) if kind == "cnn" else None
        width = CHANNELS * len(WIDTHS) if kind == "cnn" else size
        self.pool: Pool = Attention(width) if pooling == "attention" else POOLINGS[pooling]
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(size, size) if kind == "mlp" else None
        self.output = nn.Linear(width, labels)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits (b, labels) of states (b, t, d)."""
        if self.convolutions is not None:
            states = self.convolutions(states, mask)
        values = self.dropout(self.pool(states, mask))
        if self.hidden is not None:
            values = self.dropout(torch.tanh(self.hidden(values)))
        logits: torch.Tensor = self.output(values)
        return logits


POOLINGS: dict[str, Pool] = {"cls": first, "last": last, "mean": mean, "max": maximum}
