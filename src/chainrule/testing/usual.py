"""The reference of an artifact, for `hostile` to make bad ones of."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from chainrule.core.artifact import REFERENCE
from chainrule.monitoring.accuracy import estimated
from chainrule.monitoring.features import SIZE, Features
from chainrule.monitoring.reference import Said, read_reference, reference_of
from chainrule.testing.hostile import Target


def references(folder: Path) -> list[Target]:
    """A good one, and what is done with one that can be read."""
    features = Features(np.arange(200), np.arange(200) / 200, np.random.default_rng(0).standard_normal((200, SIZE)))
    said = Said([("a",), ("b",)] * 100, np.linspace(0.5, 1, 200), np.arange(200) % 9 > 0)
    made = reference_of("validation", said, features)
    assert made is not None

    def read(data: bytes, choose: random.Random) -> None:
        (folder / REFERENCE).write_bytes(data)
        reference = read_reference(folder)
        assert reference is not None
        if reference.scores is not None and reference.correct is not None:
            share = estimated(reference, [1.0] * len(reference.scores.counts))
            assert share is not None
            assert 0 <= share.low <= share.value <= share.high <= 1
        if reference.vectors is not None:
            assert reference.vectors.distances(np.zeros((3, SIZE))).shape == (3,)

    return [Target("reference", (made.model_dump_json(indent=1).encode(),), read)]
