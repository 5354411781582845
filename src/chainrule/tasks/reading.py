"""From a batch to predictions, for tasks whose logits are a few numbers a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chainrule.core.task import Predictions, Read

Decode = Callable[[np.ndarray, np.ndarray | None], Predictions]


def from_logits(decode: Decode) -> Read:
    """Read a batch by decoding its logits (b, labels) in float32, with the targets of its rows or None."""

    def read(model: Any, batch: Any, encoded: Any) -> Predictions:
        targets = None if encoded.targets is None else encoded.targets[batch.rows]
        return decode(model(**batch.inputs).logits.float().cpu().numpy(), targets)

    return read
