"""Softmax cross-entropy over a large vocabulary: the loss, and the gradient in the place of the logits."""

from __future__ import annotations

import torch

from chainrule.kernels import native


def cross_entropy_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """−log softmax(logits)[target], summed over the rows, and its gradient: softmax(logits) − one-hot(target).

    Args:
        logits: (n, classes). Their memory may be used for the gradient.
        targets: (n,) int64 in [0, classes).

    Returns:
        The sum as a 0-d tensor of at least float32, and (n, classes) in the format of the logits.
    """
    if native.usable(logits) and logits.is_contiguous():
        losses = torch.empty(len(logits))
        native.call("cross_entropy", native.is_half(logits), logits, targets.contiguous(), losses, *logits.shape)
        return losses.sum(), logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logs = torch.log_softmax(wide, -1)
    gradient = logs.exp()
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets] -= 1
    return -logs[rows, targets].sum(), gradient.to(logits.dtype)
