"""Which texts belong together: pairs, triplets, and texts with labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chainrule.core.report import Finding
from chainrule.data.flaws import Flaw, agree, count_rows, finding
from chainrule.data.split import hash_texts
from chainrule.data.table import Table
from chainrule.data.targets import Labels, read_targets
from chainrule.data.texts import Texts
from chainrule.errors import Problem

ANCHOR, POSITIVE, NEGATIVE, TEXT, LABEL = "anchor", "positive", "negative", "text", "label"
FORMS = ((ANCHOR, POSITIVE), (TEXT, LABEL))  # what a row has to have: the one or the other


def read_relations(
    table: Table, fields: Mapping[str, str], texts: Mapping[str, Texts]
) -> tuple[Labels | np.ndarray, list[Flaw]]:
    """What is known of each row, and what is wrong with it.

    Args:
        texts: field -> cleaned texts.

    Returns:
        The labels of texts; or (n, s) int64 numbers, which are the same for the same texts.
    """
    if LABEL in fields:
        labels, flaws = read_targets(table, LABEL, fields[LABEL], "class")
        if not isinstance(labels, Labels):
            raise ValueError("classes are read as labels")
        return labels, flaws
    known = np.stack([hash_texts([[text or "" for text in column]]) for column in texts.values()], axis=1)
    flaws = []
    if NEGATIVE in texts:
        same = known[:, list(texts).index(POSITIVE)] == known[:, list(texts).index(NEGATIVE)]
        for row in np.flatnonzero(same).tolist():
            todo = "Correct or remove this row."
            problem = Problem("another text than the positive", "the same", todo, table.where(row, NEGATIVE))
            flaws.append(Flaw("same-positive-and-negative", int(table.rows[row]), problem))
    return known.view(np.int64), flaws


def relation_findings(
    inputs: Mapping[str, Texts], known: np.ndarray, name: str, file: str | None, numbers: np.ndarray
) -> list[Finding]:
    """What to know of pairs: the same text on both sides, and positives that are right for several anchors.

    Args:
        known: (n, s) numbers of texts, or (n,) scores of pairs.
        numbers: (n,) of the rows in the file.
    """
    if known.ndim == 1:
        known = np.stack([hash_texts([column]) for column in inputs.values()], axis=1)
        shared = np.zeros(len(known), bool)
    else:
        pairs = np.unique(known[:, :2], axis=0)
        texts, anchors = np.unique(pairs[:, 1], return_counts=True)
        shared = np.isin(known[:, 1], texts[anchors > 1])
    same = known[:, 0] == known[:, 1]
    told = []
    if same.any():
        message = f"{count_rows(int(same.sum()), name)} {agree(int(same.sum()), 'have')} the same text on both sides."
        todo = "They teach nothing: remove them."
        told.append(("same-texts", "warning", message, todo, same))
    if shared.any():
        rows = f"{count_rows(int(shared.sum()), name)} {agree(int(shared.sum()), 'have')}"
        message = f"{rows} a positive that other anchors have, too."
        todo = "In a batch such a text is not taken for a negative of the other anchors of that positive."
        told.append(("repeated-positive", "info", message, todo, shared))
    return [
        finding(kind, severity, text, todo=todo, split=name, file=file, rows=numbers[which])
        for kind, severity, text, todo, which in told
    ]
