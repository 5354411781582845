"""The shelf of tasks: name -> table of fields, head, objective, decoding and metrics."""

from __future__ import annotations

from typing import Any

from chainrule.core.recipe import unknown_name
from chainrule.core.task import Task
from chainrule.tasks import (
    embedding,
    image_classification,
    multi_label_classification,
    preference,
    question_answering,
    ranking,
    regression,
    sentence_similarity,
    seq2seq,
    text_classification,
    text_generation,
    token_classification,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        text_classification.TASK,
        multi_label_classification.TASK,
        image_classification.TASK,
        regression.TASK,
        token_classification.TASK,
        question_answering.TASK,
        ranking.TASK,
        text_generation.TASK,
        seq2seq.TASK,
        preference.TASK,
        embedding.TASK,
        sentence_similarity.TASK,
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        RecipeError: there is no such task; the message lists the tasks there are.
    """
    if name not in TASKS:
        raise unknown_name("task", name, tuple(TASKS))
    return TASKS[name]


def describe(task: Task) -> dict[str, Any]:
    """What `show tasks` tells of a task."""
    fields = {field.name: {"kind": field.kind, "columns": list(field.aliases)} for field in task.fields}
    return {
        "name": task.name,
        "summary": task.summary,
        "default_model": task.default_model,
        "primary_metric": task.primary_metric,
        "metrics": list(task.metrics),
        "options": task.options().model_dump(),
        "fields": fields,
    }
