"""Changes to the texts that are made only when asked for; each is counted and its rows are listed."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from chainrule.core.recipe import Clean
from chainrule.core.report import Finding
from chainrule.data.flaws import agree, count_rows, finding
from chainrule.data.table import Places
from chainrule.data.texts import Texts

# Elements of the HTML standard. Only these are taken for tags: "<USER>" or "a < b" stay as they are.
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "button",
        "canvas",
        "caption",
        "center",
        "col",
        "colgroup",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "frame",
        "frameset",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "head",
        "header",
        "hr",
        "html",
        "iframe",
        "img",
        "input",
        "legend",
        "li",
        "link",
        "main",
        "map",
        "menu",
        "meta",
        "nav",
        "noscript",
        "object",
        "ol",
        "optgroup",
        "option",
        "p",
        "param",
        "picture",
        "pre",
        "script",
        "section",
        "select",
        "source",
        "style",
        "svg",
        "table",
        "tbody",
        "td",
        "template",
        "textarea",
        "tfoot",
        "th",
        "thead",
        "title",
        "tr",
        "track",
        "ul",
        "video",
        "audio",
    ]
)
_INLINE = frozenset(
    [
        "a",
        "abbr",
        "acronym",
        "b",
        "bdi",
        "bdo",
        "big",
        "cite",
        "code",
        "data",
        "del",
        "dfn",
        "em",
        "font",
        "i",
        "ins",
        "kbd",
        "label",
        "mark",
        "q",
        "rp",
        "rt",
        "ruby",
        "s",
        "samp",
        "small",
        "span",
        "strike",
        "strong",
        "sub",
        "summary",
        "sup",
        "time",
        "tt",
        "u",
        "var",
        "wbr",
    ]
)
_UNSEEN = re.compile(r"(<!--)|<(script|style)\b[^<>]*>", re.IGNORECASE)
_ENDS = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("script", "style")} | {"": re.compile("-->")}
_TAG = re.compile(r"""</?([a-zA-Z][a-zA-Z0-9]*)(?:[\s/](?:[^<>"']++|"[^"]*+"|'[^']*+')*+)?>""")
_WHITE = re.compile(r"\s+")


@dataclass(frozen=True)
class Cleaned:
    """Texts after cleaning.

    Attributes:
        inputs: field -> texts, as many as before.
        findings: one "cleaned" finding for each kind of change that was asked for.
    """

    inputs: dict[str, Texts]
    findings: list[Finding]


def clean_texts(inputs: dict[str, Texts], options: Clean, places: Places, split: str | None) -> Cleaned:
    """Apply the changes asked for to every text: HTML first, then Unicode NFKC, then white space."""
    steps = _changes(options)
    if not steps:
        return Cleaned(inputs, [])
    touched = np.zeros((len(steps), len(places)), dtype=bool)

    def cleaned(texts: Texts) -> Iterator[str]:
        for row, text in enumerate(texts):
            before = text or ""
            for step, (_, change) in enumerate(steps):
                after = change(before)
                touched[step, row] |= after != before
                before = after
            yield before

    done = {name: Texts.of(cleaned(texts)) for name, texts in inputs.items()}
    findings = []
    for (what, _), mask in zip(steps, touched, strict=True):
        count = int(mask.sum())
        message = f"{count_rows(count, split)} {agree(count, 'were changed')}: {what}."
        findings.append(finding("cleaned", "info", message, split=split, file=places.file, rows=places.rows[mask]))
    return Cleaned(done, findings)


def clean_text(text: str, options: Clean) -> str:
    """One text with the changes asked for."""
    for _, change in _changes(options):
        text = change(text)
    return text


def exact_duplicates(row_hashes: np.ndarray, places: Places, split: str | None) -> tuple[np.ndarray, Finding]:
    """A mask of the rows to keep: the first of each group with equal inputs and equal target."""
    keep = np.zeros(len(row_hashes), dtype=bool)
    keep[np.unique(row_hashes, return_index=True)[1]] = True
    removed = places.rows[~keep]
    message = (
        f"{count_rows(len(removed), split)} {agree(len(removed), 'were left out')}: exact duplicates of an earlier row."
    )
    return keep, finding("cleaned", "info", message, split=split, file=places.file, rows=removed)


def remove_html(text: str) -> str:
    """Text without HTML elements and with entities resolved. Elements that break a line leave a space behind."""
    if "<" in text:
        text = _TAG.sub(_instead, _without_unseen(text))
    return html.unescape(text) if "&" in text else text


def collapse_white_space(text: str) -> str:
    """Text without white space at its ends and with single spaces inside; includes the ideographic space."""
    return _WHITE.sub(" ", text).strip()


def _changes(options: Clean) -> list[tuple[str, Callable[[str], str]]]:
    """What each change is called, and the function that makes it, in the order they are made."""
    steps: list[tuple[bool, str, Callable[[str], str]]] = [
        (options.html, "HTML tags or entities removed", remove_html),
        (options.unicode_nfkc, "Unicode normalised (NFKC)", lambda text: unicodedata.normalize("NFKC", text)),
        (options.white_space, "white space collapsed", collapse_white_space),
    ]
    return [(what, change) for wanted, what, change in steps if wanted]


def _without_unseen(text: str) -> str:
    """Text with a space instead of each comment, script and style sheet; in one pass, however many never end."""
    parts, place, endless = [], 0, set()
    for start in _UNSEEN.finditer(text):
        kind = (start[2] or "").lower()
        if start.start() < place or kind in endless:
            continue
        end = _ENDS[kind].search(text, start.end())
        if end is None:
            endless.add(kind)
            continue
        parts.append(text[place : start.start()])
        place = end.end()
    return " ".join([*parts, text[place:]])


def _instead(match: re.Match[str]) -> str:
    name = match[1].lower()
    if name in _INLINE:
        return ""
    return " " if name in _BLOCKS else match[0]
