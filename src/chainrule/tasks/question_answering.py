"""The answer to a question, as a piece of a context, or that there is none."""

from __future__ import annotations

from chainrule.core.task import FieldSpec, Task
from chainrule.metrics import answers
from chainrule.tasks.answers import Options, calibrate, encode, marked, prepare_model, read
from chainrule.tasks.objectives import ANSWER_LOSSES, answer_objective
from chainrule.tasks.words import prepare_tokenizer

TASK = Task(
    name="question-answering",
    summary="the answer to a question, as a piece of its context",
    fields=(
        FieldSpec("question", "text", ("question", "query")),
        FieldSpec("context", "text", ("context", "passage", "paragraph", "document", "text")),
        FieldSpec("answers", "answers", ("answers", "answer", "answer_text")),
    ),
    default_model="minilm",
    primary_metric="f1",
    problem_type="",
    measure=answers.measure,
    metrics=("f1", "exact_match", "loss"),
    detail=answers.detail,
    encode=encode,
    read=read,
    losses=ANSWER_LOSSES,
    objective=answer_objective,
    head="answer-finder",
    micro_batch_tokens=4096,
    outputs=lambda labels: ("begin", "end"),
    prepare_tokenizer=prepare_tokenizer,
    options=Options,
    prepare_head=prepare_model,
    calibrate=calibrate,
    marked=marked,
)
