"""Long texts in windows that overlap: what a model says of a text is the mean of what it says of its windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Section, Spec
from chainrule.core.task import Objective, Predictions, Read, Task
from chainrule.data.encode import CHUNK_ROWS, Encoded, joined, offsets_of, segments_of
from chainrule.errors import Problem, RecipeError, Where
from chainrule.tasks.objectives import LogitsObjective, backward, logits_of
from chainrule.tasks.reading import Decode, few_at_once

OVERLAP = 4  # neighbouring windows share a quarter of their tokens


class LongTexts(Section):
    """`windows`: read texts that are longer than the model reads in windows, instead of cutting them."""

    windows: bool = False


@dataclass(frozen=True)
class Windowed:
    """Tokenises one text a row, as several sequences where it is longer than the model reads."""

    def __call__(self, tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
        """Tokenise rows.

        Args:
            inputs: one column of texts.

        Raises:
            RecipeError: there are two.
        """
        if len(inputs) > 1:
            where, todo = Where(field="task.options.windows"), "Leave it out."
            problem = Problem("one text a row", f"two: {', '.join(inputs)}", todo, where)
            raise RecipeError("Pairs of texts are not read in windows.", [problem])
        (texts,) = inputs.values()

        def pieces() -> Iterator[Encoded]:
            for start in range(0, len(texts), CHUNK_ROWS):
                yield _encode_few(tokenizer, list(texts[start : start + CHUNK_ROWS]), max_length)

        return replace(joined(pieces()), targets=targets)


def _encode_few(tokenizer: Any, texts: list[str], max_length: int) -> Encoded:
    batch = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        stride=(max_length - tokenizer.num_special_tokens_to_add()) // OVERLAP,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    counts = np.bincount(batch["overflow_to_sample_mapping"], minlength=len(texts))
    encoded = Encoded(
        ids=np.concatenate([np.asarray(ids, np.int32) for ids in batch["input_ids"]]),
        offsets=offsets_of([len(ids) for ids in batch["input_ids"]]),
        types=segments_of(batch),
        full_lengths=np.zeros(len(texts), np.int64),
        targets=None,
        sequences=offsets_of(counts),
    )
    encoded.full_lengths[:] = encoded.lengths  # windows read all of a text
    return encoded


@dataclass(frozen=True)
class MeanObjective:
    """The sum over rows of a loss of the mean logits of each row's windows."""

    inner: LogitsObjective

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        logits = mean_of(logits_of(model, batch.inputs), batch.counts)
        return backward(self.inner.row_loss(logits, batch.targets).sum()), len(batch)


def mean_of(logits: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """(b, labels): the means of (s, labels) over as many rows after one another as `counts` (b,) says."""
    sizes = torch.from_numpy(counts).to(logits.device)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=logits.device), sizes)
    sums = logits.new_zeros(len(counts), logits.shape[-1]).index_add(0, rows, logits)
    return sums / sizes[:, None]


def from_windows(decode: Decode) -> Read:
    """Read a batch by decoding the mean logits of each row's windows, a few windows at a time."""

    def read(model: Any, batch: Any, encoded: Any) -> Predictions:
        parts = [
            logits_of(model, {name: values[few] for name, values in batch.inputs.items()}) for few in few_at_once(batch)
        ]
        targets = None if encoded.targets is None else encoded.targets[batch.rows]
        return decode(mean_of(torch.cat(parts), batch.counts).cpu().numpy(), targets)

    return read


def in_windows(task: Task, decode: Decode, scores: Decode | None = None) -> Callable[[LongTexts], Task]:
    """What makes `task` one that reads long texts in windows, if its options say so.

    Args:
        scores: decodes what `Task.read_scores` gives.
    """

    def objective(loss: Spec, targets: Any) -> Objective:
        inner = task.objective(loss, targets)
        if not isinstance(inner, LogitsObjective):
            raise TypeError("only logits of a row have a mean over its windows")
        return MeanObjective(inner)

    read_scores = None if scores is None else from_windows(scores)
    changed = replace(task, encode=Windowed(), read=from_windows(decode), read_scores=read_scores, objective=objective)
    return lambda options: changed if options.windows else task
