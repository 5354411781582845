"""What is wrong with single rows, and how that is told to a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from chainrule.core.report import Finding
from chainrule.errors import DataError, Problem, Where

MAX_ROWS = 50
MAX_COLUMNS = 10_000
MAX_PROBLEMS = 1_000


@dataclass(frozen=True, slots=True)
class Flaw:
    """A row that was noticed. One with a `problem` cannot be used; one without is only worth telling.

    Attributes:
        kind: a key of `KINDS`.
        row: 1-based data row number (for "blank-line": the line).
    """

    kind: str
    row: int
    problem: Problem | None = None


# kind -> (severity of a row without a problem, what the rows do, what to do about it)
KINDS: dict[str, tuple[str, str, str]] = {
    "ragged-row": (
        "error",
        "have more or fewer cells than the header",
        "Put quotes around cells that hold the separator.",
    ),
    "broken-quote": ("error", "have a lone or misplaced quote", 'Write a quote inside a quoted cell twice ("").'),
    "broken-json": ("error", "are not JSON objects", "Write one object per row."),
    "wrong-encoding": ("error", "have bytes or characters that are not UTF-8 text", "Save the data as UTF-8."),
    "nul-byte": ("error", "hold NUL bytes", "Remove the NUL bytes; the file may be damaged, or not text at all."),
    "empty-text": ("error", "have no text", "Fill in or remove these rows, or pass --on-bad-row skip."),
    "missing-label": ("error", "have no label", "Label or remove these rows, or pass --on-bad-row skip."),
    "bad-label": ("error", "have a list of labels that cannot be read", 'Join labels by "|" or write a JSON list.'),
    "unknown-label": ("error", "have a label that train never shows", "Correct the label, or add such rows to train."),
    "not-a-number": ("error", "have a target that is not a number", "Write plain numbers such as 3.5."),
    "bad-messages": (
        "error",
        "have a conversation that cannot be read",
        'Write a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].',
    ),
    "no-reply": ("error", "have no reply to learn from", "Add the reply, or remove these rows."),
    "no-target": (
        "error",
        "have no target to learn from",
        "Add the target, or remove these rows, or pass --on-bad-row skip.",
    ),
    "same-replies": ("error", "have twice the same reply", "Remove these rows: they prefer nothing."),
    "nothing-to-learn": (
        "error",
        "have no token to learn from",
        "Raise --max-length, or shorten or remove these rows.",
    ),
    "long-question": (
        "error",
        "have a question that leaves too little room to its context",
        "Shorten these questions, or raise --max-length.",
    ),
    "bad-tokens": ("error", "have a list of words with an empty or damaged one", "Correct or remove these rows."),
    "bad-image": (
        "error",
        "have an image that cannot be read",
        "Correct the paths, or replace or remove these images.",
    ),
    "bad-entities": (
        "error",
        "have tags or spans that do not fit their text",
        "Write one tag a word, or spans that count characters from 0.",
    ),
    "bad-answers": (
        "error",
        "have answers that do not fit their context",
        "Give each answer's text and where it begins, in characters from 0, or [] for no answer.",
    ),
    "same-positive-and-negative": (
        "error",
        "have the same text as positive and as negative",
        "Correct or remove these rows.",
    ),
    "negative-relevance": ("error", "have a relevance below 0", "Count relevance from 0 (not relevant) up."),
    "no-relevant": (
        "error",
        "begin a list without any relevant candidate",
        "Add a relevant one, remove the rows of the query, or pass --on-bad-row skip.",
    ),
    "no-positive": (
        "error",
        "begin the rows of a user who liked nothing",
        "Lower task.options.positive, remove these users, or pass --on-bad-row skip.",
    ),
    "no-negative": ("error", "begin the rows of a user who has rated every item", "Add items, or remove these users."),
    "missing-key": ("error", "have no id", "Fill in or remove these rows, or pass --on-bad-row skip."),
    "repeated-key": ("error", "have the id of an earlier row", "Leave one of the rows."),
    "unknown-item": (
        "error",
        "name an item that the table of items has not",
        "Add the items with their texts, or pass --on-bad-row skip.",
    ),
    "not-a-time": ("error", "have a time that cannot be read", "Write seconds as numbers, or ISO dates."),
    "repeated-candidate": ("warning", "repeat a query with the same item; the first one counts", "Leave one of them."),
    "repeated-interaction": (
        "warning",
        "have a user with an item that a later row repeats; the later one counts",
        "Leave one of them.",
    ),
    "inside-without-begin": (
        "warning",
        "have an I- tag that continues nothing; it was read as the beginning of an entity",
        "In IOB1 files this is as it should be; elsewhere look at these rows.",
    ),
    "span-white-space": ("warning", "have spans with white space at an end; they were taken without it", ""),
    "span-inside-word": (
        "warning",
        "have spans that begin or end inside a word; the whole word is learned, and no prediction can be right there",
        "Move the ends of these spans to those of words.",
    ),
    "unanswered-turn": ("warning", "have turns after the last reply, which were left out", ""),
    "blank-line": ("info", "are blank (not counted as rows)", ""),
    "literal-quotes": ("warning", "have unpaired quotes, which were read as plain characters", "Look at these rows."),
    "swallowed-rows": (
        "warning",
        "have a quoted cell over several lines that look like rows of their own",
        "Look for a lone quote at the start of a cell: it may have swallowed the rows after it.",
    ),
    "replacement-character": (
        "warning",
        "hold U+FFFD (�), the trace of an earlier wrong decoding",
        "Look at these rows; the original text may still be somewhere.",
    ),
    "label-white-space": (
        "warning",
        "have white space around a label; the label was taken without it",
        "Remove the white space.",
    ),
    "no-label": ("info", "have no label at all, which is allowed here", ""),
}


def count_rows(count: int, split: str | None, noun: str = "row") -> str:
    """ "1 row of train", "1,204 rows"."""
    words = f"{count:,} {noun}" + ("" if count == 1 else "s")
    return f"{words} of {split}" if split else words


def agree(count: int, phrase: str) -> str:
    """Put the verb that starts `phrase` ("have …", "are …", "hold …") into the singular for a count of one."""
    if count != 1:
        return phrase
    verb, _, rest = phrase.partition(" ")
    return f"{ {'have': 'has', 'are': 'is', 'were': 'was'}.get(verb, verb + 's') } {rest}".strip()


def summarise(
    flaws: Sequence[Flaw], *, split: str | None, file: str | None, on_bad_row: str
) -> tuple[list[Finding], list[Problem]]:
    """Findings by kind, and the problems row by row.

    With `on_bad_row` "skip" the unusable rows become "skipped" warnings that say which rows and why, and no problems
    are left.
    """
    findings: list[Finding] = []
    problems: list[Problem] = []
    by_kind: dict[tuple[str, bool], list[Flaw]] = {}
    for flaw in flaws:
        by_kind.setdefault((flaw.kind, flaw.problem is not None), []).append(flaw)
    for (kind, unusable), found in by_kind.items():
        rows = [flaw.row for flaw in found]
        told = _told(kind, len(set(rows)), split, skipped=unusable and on_bad_row == "skip")
        name, severity, message, todo = told
        if severity == "error" and not unusable:
            raise ValueError(f"a flaw of kind {kind!r} needs a problem")
        if severity == "error":
            problems += [flaw.problem for flaw in found if flaw.problem is not None]
        findings.append(finding(name, severity, message, todo=todo, split=split, file=file, rows=rows))
    return findings, problems


def _told(kind: str, count: int, split: str | None, *, skipped: bool) -> tuple[str, str, str, str]:
    severity, phrase, todo = KINDS[kind]
    rows = count_rows(count, split, "line" if kind == "blank-line" else "row")
    if not skipped:
        return kind, severity, f"{rows} {agree(count, phrase)}.", todo
    words = "was skipped: it" if count == 1 else "were skipped: they"
    return "skipped", "warning", f"{rows} {words} {agree(count, phrase)}.", ""


def finding(
    kind: str,
    severity: str,
    message: str,
    *,
    todo: str = "",
    split: str | None = None,
    file: str | None = None,
    rows: Iterable[int] = (),
) -> Finding:
    """A Finding about `rows`: counted in full, the first `MAX_ROWS` listed in order."""
    distinct = np.unique(np.fromiter(rows, dtype=np.int64))
    return Finding(
        kind=kind,
        severity=severity,
        message=message,
        todo=todo,
        split=split,
        file=file,
        count=len(distinct),
        rows=tuple(distinct[:MAX_ROWS].tolist()),
    )


def refuse_names(names: Sequence[str], where: Where, todo: str) -> None:
    """Raise DataError where there are too many columns, or two of one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        problem = Problem("different column names", f"{some(twice)} more than once among {some(names)}", todo, where)
    elif len(names) > MAX_COLUMNS:
        problem = Problem(f"at most {MAX_COLUMNS:,} columns", f"{len(names):,}: {some(names, 3)}", todo, where)
    else:
        return
    raise DataError(f"The columns of {where.file} cannot be used.", [problem])


def some(texts: Sequence[str], limit: int = 30) -> str:
    """The first of the user's texts, joined by commas."""
    return ", ".join(map(shorten, texts[:limit])) + (", …" if len(texts) > limit else "")


def shorten(text: str, limit: int = 60) -> str:
    """A piece of the user's text for a message: one line, quoted, at most `limit` characters."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
