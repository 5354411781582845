"""Entities of a text: each word gets a tag, and tags make spans."""

from __future__ import annotations

from chainrule.core.task import FieldSpec, Task
from chainrule.data.entities import tag_names
from chainrule.metrics import entities
from chainrule.tasks.objectives import TOKEN_LOSSES, token_objective
from chainrule.tasks.words import encode, marked, prepare_tokenizer, read

TASK = Task(
    name="token-classification",
    summary="the entities of a text, or a tag for each of its words",
    fields=(
        FieldSpec("text", "text", ("text", "sentence", "content"), required=False),
        FieldSpec("tokens", "words", ("tokens", "words"), required=False),
        FieldSpec("entities", "spans", ("entities", "ner_tags", "tags", "spans", "labels", "label", "ner")),
    ),
    default_model="minilm",
    primary_metric="f1",
    problem_type="",
    measure=entities.measure,
    metrics=("f1", "precision", "recall", "macro_f1", "loss"),
    detail=entities.detail,
    encode=encode,
    read=read,
    losses=TOKEN_LOSSES,
    objective=token_objective,
    head="token-classifier",
    outputs=tag_names,
    prepare_tokenizer=prepare_tokenizer,
    marked=marked,
)
