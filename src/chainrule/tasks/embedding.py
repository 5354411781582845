"""Texts to vectors, so that what belongs together is near."""

from __future__ import annotations

from chainrule.core.task import FieldSpec, Task
from chainrule.data.relations import ANCHOR, LABEL, NEGATIVE, POSITIVE, TEXT
from chainrule.metrics import retrieval
from chainrule.tasks.similarity import RELATION_LOSSES
from chainrule.tasks.vectors import (
    Companions,
    Options,
    encode,
    find,
    find_by_words,
    read,
    relation_objective,
)

TASK = Task(
    name="embedding",
    summary="vectors of texts: what belongs together is near",
    fields=(
        FieldSpec(TEXT, "text", ("text", "sentence", "content", "title"), required=False),
        FieldSpec(ANCHOR, "text", ("anchor", "query", "question", "prompt", "instruction"), required=False),
        FieldSpec(
            POSITIVE,
            "text",
            ("positive", "context", "passage", "document", "answer", "response", "output", "reply"),
            required=False,
        ),
        FieldSpec(NEGATIVE, "text", ("negative", "hard_negative"), required=False),
        FieldSpec(LABEL, "relation", ("label", "class", "category", "intent", "target", "y"), required=False),
    ),
    default_model="minilm",
    primary_metric="ndcg@10",
    problem_type="",
    measure=retrieval.measure,
    metrics=(*retrieval.METRICS, "loss"),
    detail=retrieval.detail,
    encode=encode,
    read=read,
    losses=RELATION_LOSSES,
    objective=relation_objective,
    head="encoder",
    options=Options,
    conclude=find,
    enrich=Companions(),
    whole_batches=True,
    baseline="untuned",
    free=find_by_words,
)
