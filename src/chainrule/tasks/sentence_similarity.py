"""Texts to vectors whose cosines are in the order of given scores."""

from __future__ import annotations

from chainrule.core.task import FieldSpec, Task
from chainrule.metrics import similarity
from chainrule.tasks.similarity import SCORE_LOSSES
from chainrule.tasks.vectors import compare, compare_by_words, encode, read, score_objective

TASK = Task(
    name="sentence-similarity",
    summary="vectors of texts: the higher a pair's score, the nearer",
    fields=(
        FieldSpec("text_a", "text", ("text_a", "sentence1", "sentence_A", "text1", "question1", "premise")),
        FieldSpec("text_b", "text", ("text_b", "sentence2", "sentence_B", "text2", "question2", "hypothesis")),
        FieldSpec("score", "number", ("score", "similarity", "relatedness_score", "label", "target", "y")),
    ),
    default_model="minilm",
    primary_metric="spearman",
    problem_type="",
    measure=similarity.measure,
    metrics=("spearman", "pearson", "loss"),
    detail=similarity.detail,
    encode=encode,
    read=read,
    losses=SCORE_LOSSES,
    objective=score_objective,
    head="encoder",
    conclude=compare,
    whole_batches=True,
    baseline="untuned",
    free=compare_by_words,
)
