"""One file per way to make one model of several fine-tunes of the same base."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.core.shelf import Entry, NoOptions
from chainrule.merging import average, ensembles, slerp, task_vectors

MERGES: Mapping[str, Entry] = {
    "average": Entry(average.Options, average.Average, "the mean of the weights: a soup of runs"),
    "greedy": Entry(NoOptions, average.Greedy, "the mean of those that make it better on validation, best first"),
    "slerp": Entry(slerp.Options, slerp.Slerp, "two models, along the arc between their weights"),
    "task-arithmetic": Entry(
        task_vectors.ArithmeticOptions, task_vectors.Arithmetic, "the base and what each run added, more or less of it"
    ),
    "ties": Entry(
        task_vectors.TiesOptions, task_vectors.Ties, "what each run changed most, where they agree on the sign"
    ),
    "ensemble": Entry(
        ensembles.Options, ensembles.Together, "all of them, whole; their probabilities are averaged, or stacked"
    ),
    "dare": Entry(task_vectors.DareOptions, task_vectors.Dare, "what runs added, most of it dropped at random"),
}
