"""The data sets, epochs, batch sizes and learning rates that every trainer under test is given.

Both our runs and the peers' runs read this one table, so that a comparison cannot drift apart.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DATA = Path(os.environ.get("CHAINRULE_TEST_DATA", "../shared/data"))


@dataclass(frozen=True)
class Workload:
    """One data set with the settings that are the same for every trainer."""

    name: str
    task: str
    metric: str
    epochs: float
    learning_rate: float = 5e-5
    batch_size: int = 32
    max_length: int = 128

    @property
    def folder(self) -> Path:
        return DATA / self.name


# Part of an epoch of the large sets: enough to compare trainers, little enough to do it often.
WORKLOADS = {
    w.name: w
    for w in (
        Workload("trec", "text-classification", "accuracy", 2),
        Workload("sst2", "text-classification", "accuracy", 2),
        Workload("mrpc", "text-classification", "accuracy", 3),
        Workload("banking77", "text-classification", "accuracy", 2, learning_rate=1e-4),
        Workload("stsb", "regression", "spearman", 3),
        Workload("goemotions", "multi-label-classification", "micro_f1", 0.25),
        Workload("ocnli", "text-classification", "accuracy", 0.25),
        Workload("chnsenticorp", "text-classification", "accuracy", 0.5),
    )
}
