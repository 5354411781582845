"""The text fields that the text tasks share: one text, or a pair."""

from __future__ import annotations

from chainrule.core.task import FieldSpec

TEXT_FIELDS = (
    FieldSpec("text", "text", ("text", "sentence", "review", "content", "title", "question", "query"), required=False),
    FieldSpec(
        "text_a", "text", ("text_a", "sentence1", "premise", "question1", "text1", "query", "question"), required=False
    ),
    FieldSpec(
        "text_b",
        "text",
        ("text_b", "sentence2", "hypothesis", "question2", "text2", "passage", "answer"),
        required=False,
    ),
)
