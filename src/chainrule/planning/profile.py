"""What the rows are like, and how well a model's vocabulary fits them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from pydantic import Field

from chainrule.core.report import Report
from chainrule.data.encode import Encoded
from chainrule.tasks.prepare import Prepared

SAMPLE = 2000  # rows
MOST_TEXT = 2000  # letters of each
_BYTE = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")
_SCRIPTS = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "CYRILLIC",
    "ARABIC",
    "DEVANAGARI",
    "GREEK",
    "HEBREW",
    "THAI",
    "LATIN",
)
_SHOWN = {"CJK": "Han"}
# Some of the most frequent short words of each: enough to tell these languages from each other, and no more.
_WORDS = {
    "English": "the of and to in is that it for was with as on are this be have not",
    "German": "der die und das ist nicht ein eine zu den von mit sich auf für dem es im",
    "French": "le la les et des est un une dans que pour pas qui sur du avec ce plus",
    "Spanish": "el la los de y que en un una es no por con para las se lo del",
    "Portuguese": "o a os de e que em um uma não por com para as se do da é",
    "Italian": "il di che e la un una per non è in con sono del della si le ma",
    "Dutch": "de het een en van is dat niet op te zijn met voor aan er ook maar om",
    "Hausa": "da a na ya ta ba an ne ce su wani cikin yi kuma wannan don sun ga",
}


class DataProfile(Report):
    """The training rows and what stands beside them.

    Attributes:
        rows: split -> rows.
        labels: different ones; 0 where rows have none.
        smallest, largest: shares of the rarest and of the most frequent label.
        scripts: writing system -> share of the letters, the most frequent first.
        language: as its most frequent words say; null where they do not.
        findings: what the check noticed, by kind, with the number of rows.
    """

    rows: dict[str, int]
    labels: int
    smallest: float | None
    largest: float | None
    scripts: dict[str, float] = Field(default_factory=dict)
    language: str | None = None
    findings: dict[str, int] = Field(default_factory=dict)


class Fit(Report):
    """How a tokenizer reads the training rows.

    Attributes:
        mean, middle, high, longest: tokens of a row before anything is cut: mean, median, 95 of 100, all.
        cut: share of the rows that lose their end at the limit.
        unknown: share of tokens that stand for something the vocabulary does not have.
        bytes: share of tokens that are single bytes of a letter that the vocabulary does not have.
        letters: that one token stands for on average.
    """

    limit: int
    mean: float
    middle: int
    high: int
    longest: int
    cut: float
    unknown: float
    bytes: float
    letters: float | None


def look_at_rows(prepared: Prepared) -> DataProfile:
    """The data as it is, whatever the model."""
    report, texts = prepared.report, list(_texts(prepared))
    counts = [count for count in report.splits["train"].labels.values() if count]
    found: Counter[str] = Counter()
    for finding in report.findings:
        found[finding.kind] += finding.count
    total = max(sum(counts), 1)
    scripts = scripts_of(texts)
    return DataProfile(
        rows={name: split.rows for name, split in report.splits.items()},
        labels=len(report.labels),
        smallest=round(min(counts) / total, 4) if len(counts) > 1 else None,
        largest=round(max(counts) / total, 4) if len(counts) > 1 else None,
        scripts=scripts,
        language=language_of(texts, scripts),
        findings=dict(found),
    )


def look_at_tokens(prepared: Prepared) -> Fit:
    """How the tokenizer of a model reads the rows."""
    encoded, tokenizer = prepared.encoded["train"], prepared.tokenizer
    full = np.sort(encoded.full_lengths)
    unknown, pieces = 0.0, 0.0
    if encoded.pixels is None:
        ids = encoded.ids[: SAMPLE * 100]
        read = getattr(tokenizer, "unk_token_id", None)
        unknown = 0.0 if read is None or not len(ids) else float(np.mean(ids == read))
        pieces = _bytes_among(tokenizer, ids)
    letters = sum(map(len, _texts(prepared)))
    tokens = int(encoded.full_lengths[:SAMPLE].sum())
    return Fit(
        limit=prepared.max_length,
        mean=round(float(full.mean()), 1),
        middle=int(full[len(full) // 2]),
        high=int(full[min(len(full) - 1, int(0.95 * len(full)))]),
        longest=int(full[-1]),
        cut=round(_cut_share(encoded, prepared.max_length), 4),
        unknown=round(unknown, 4),
        bytes=round(pieces, 4),
        letters=round(letters / tokens, 2) if letters and tokens else None,
    )


def scripts_of(texts: Iterable[str]) -> dict[str, float]:
    """The writing systems of some texts, each with its share of the letters, the most frequent first."""
    letters = Counter(letter for text in texts for letter in text if letter.isalpha())
    found: Counter[str] = Counter()
    for letter, count in letters.items():
        name = unicodedata.name(letter, "").partition(" ")[0]
        found[_SHOWN.get(name, name.capitalize()) if name in _SCRIPTS else "other"] += count
    total = max(sum(found.values()), 1)
    return {name: round(count / total, 4) for name, count in found.most_common()}


def language_of(texts: Iterable[str], scripts: dict[str, float]) -> str | None:
    """The language that the most frequent words belong to; None where no language of the table is ahead."""
    main = next(iter(scripts), None)
    if main == "Han":
        return "Japanese" if scripts.get("Hiragana", 0) > 0.05 else "Chinese"
    if main in ("Hiragana", "Katakana"):
        return "Japanese"
    if main in ("Hangul", "Thai", "Greek", "Hebrew"):
        return {"Hangul": "Korean"}.get(main, "Thai" if main == "Thai" else main)
    if main != "Latin":
        return None
    words = Counter(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    total = max(sum(words.values()), 1)
    shares = {name: sum(words[word] for word in listed.split()) / total for name, listed in _WORDS.items()}
    first, second = sorted(shares, key=lambda name: -shares[name])[:2]
    return first if shares[first] > 0.08 and shares[first] > 1.2 * shares[second] else None


def _texts(prepared: Prepared) -> Iterable[str]:
    inputs = prepared.dataset.splits["train"].inputs
    for column in inputs.values():
        for cell in islice(column, SAMPLE):
            if isinstance(cell, str) and not cell.startswith("data:"):
                yield cell[:MOST_TEXT]


def _bytes_among(tokenizer: Any, ids: np.ndarray) -> float:
    """Share of the ids that are single bytes, by their names (<0xE4>) or as nothing that can be read alone."""
    if not len(ids) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        return 0.0
    distinct, counts = np.unique(ids, return_counts=True)
    tokens = tokenizer.convert_ids_to_tokens(distinct.tolist())
    texts = [tokenizer.decode([place]) for place in distinct.tolist()]
    single = [bool(_BYTE.match(str(token))) or "\ufffd" in text for token, text in zip(tokens, texts, strict=True)]
    return float(counts[np.array(single)].sum() / counts.sum())


def _cut_share(encoded: Encoded, limit: int) -> float:
    if encoded.pixels is not None or encoded.sequences is not None:
        return 0.0
    return float(np.mean(encoded.full_lengths > limit))
