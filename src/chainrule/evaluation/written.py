"""What a model writes for some of the rows it is judged on, beside what others have to say to them.

Writing takes far longer than scoring, so it is done for a number of rows that the recipe states
(`task.options.generated`): those with the lowest hashes, which are the same ones each time and as good as drawn. A
source can be copied, or its first sentence, for nothing; what is written of it is judged against the best of these and
of what the untuned model writes, on these very rows, which is hard on the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.core.recipe import Section
from chainrule.core.report import EvaluationReport
from chainrule.core.task import Task
from chainrule.data.chat import MESSAGES, is_plain, turns_of
from chainrule.data.load import Split
from chainrule.data.written import references_of
from chainrule.evaluation.baselines import UNTUNED
from chainrule.evaluation.compare import judge_texts
from chainrule.evaluation.sentence_overlap import sentences_of
from chainrule.inference.generate import Writing, write_texts
from chainrule.inference.predict import Forward
from chainrule.metrics.written import Written, measure, tally
from chainrule.system.progress import Display
from chainrule.tasks.generated import Generated

FIRST, COPY = "lead-1", "copy"
METRIC = "rougeL"  # what the verdict on texts goes by
EXAMPLES = 5
SHOWN = 2_000  # characters of a text in a report


@dataclass(frozen=True)
class Sample:
    """Some rows of a split, and how a model is to write for them.

    Attributes:
        task: what the rows are.
        rows: (k,) positions in the split, ascending.
        inputs: of these rows, by field.
        references: (k,) one or more texts each.
        limit: tokens of what is read at most.
    """

    task: Task
    tokenizer: Any
    rows: np.ndarray
    inputs: dict[str, Any]
    references: list[list[str]]
    limit: int
    writing: Writing

    def written_by(self, forward: Forward, told: str, display: Display) -> Written:
        """What a model writes; it keeps the number format in which it did."""
        limit = None if self.task.converses else self.limit
        with display.bar(told, len(self.rows)) as bar:
            said = write_texts(forward, self.tokenizer, self.task, self.inputs, self.writing, limit, bar)
        return Written(said.texts, said.tokens, said.finished)

    def free(self) -> dict[str, Written]:
        """What can be had of sources for nothing, by name; none of conversations."""
        if self.task.converses:
            return {}
        (sources,) = self.inputs.values()
        first = [text[slice(*next(iter(sentences_of(text))))].strip() for text in sources]
        return {name: self._counted(texts) for name, texts in ((FIRST, first), (COPY, list(sources)))}

    def _counted(self, texts: list[str]) -> Written:
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return Written(texts, np.array([len(row) for row in ids]))


def sample(task: Task, options: Section, tokenizer: Any, split: Split, limit: int) -> Sample | None:
    """The rows of a split that are written for: those with the lowest hashes. None for none at all.

    Args:
        options: the task's.
        limit: tokens of a row.
    """
    if not isinstance(options, Generated) or not options.generated:
        return None
    if task.converses and is_plain(turns_of(split.inputs[MESSAGES][0])):  # nothing is asked
        return None
    rows = np.sort(np.argsort(split.hashes, kind="stable")[: options.generated])
    references = [[text] if task.converses else references_of(text) for text in split.targets[rows]]
    inputs = {name: texts[rows] for name, texts in split.inputs.items()}
    writing = Writing(beams=options.beams, max_new_tokens=options.max_new_tokens)
    return Sample(task, tokenizer, rows, inputs, references, limit, writing)


def with_texts(
    report: EvaluationReport, found: Sample, split: Split, model: Written, untuned: Written | None
) -> EvaluationReport:
    """A report with the scores of what was written, and a few examples.

    Where sources can be copied, the verdict is about what was written from here on.

    Args:
        model: what the model wrote for the rows of the sample.
        untuned: what it did before step one, where that is known.
    """
    others = found.free() | ({} if untuned is None else {UNTUNED: untuned})
    tallies = {name: tally(found.references, texts) for name, texts in others.items()}
    scores = {name: measure(rows)[METRIC] for name, rows in tallies.items()}
    chosen = None if found.task.converses else max(scores, key=lambda name: scores[name])
    metrics, baselines, verdict, numbers = judge_texts(tally(found.references, model), tallies, METRIC, chosen=chosen)
    told = {
        "rows": len(found.rows),
        "of": len(split),
        "metrics": list(metrics),
        "writing": found.writing.model_dump(mode="json"),
        "examples": _examples(found, split, model, others),
    }
    both = {
        name: report.baselines.get(name, {}) | baselines.get(name, {}) for name in {**report.baselines, **baselines}
    }
    changes: dict[str, Any] = {"metrics": report.metrics | metrics, "baselines": both}
    detail = report.detail | {"written": told}
    if chosen is not None:
        changes |= {"verdict": verdict, "primary_metric": METRIC}
        detail |= {"verdict": numbers}
    return report.model_copy(update={**changes, "detail": detail})


def _examples(found: Sample, split: Split, model: Written, others: Mapping[str, Written]) -> list[dict[str, Any]]:
    """The first rows of the sample: what was asked, what was right, and what was written."""
    return [
        {
            "row": int(split.places.rows[row]),
            "source": _shown(_asked(found, place)),
            "references": [_shown(text) for text in found.references[place]],
            "written": _shown(model.texts[place]),
            "others": {name: _shown(texts.texts[place]) for name, texts in others.items() if name != COPY},
        }
        for place, row in enumerate(found.rows[:EXAMPLES].tolist())
    ]


def _asked(found: Sample, place: int) -> str:
    """What is answered: a source, or the turns of a conversation."""
    text = str(next(iter(found.inputs.values()))[place])
    if not found.task.converses:
        return text
    turns = turns_of(text)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"
