"""Text for people in two languages: every sentence of a report exists in English and in Chinese.

The sentences lie in templates/texts.yaml. A page holds both languages and shows one of them, so `Words` renders
as two neighbouring elements of which the page's style sheet hides one.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import yaml
from markupsafe import Markup, escape

TEXTS = "texts.yaml"


class Words(NamedTuple):
    """The same thing said in English and in Chinese, as plain unescaped text."""

    en: str
    zh: str

    def __html__(self) -> str:
        return self.markup("span")

    def markup(self, tag: str) -> Markup:
        """Both languages as escaped elements, or the bare text when they say the same.

        Args:
            tag: "span" in HTML, "tspan" in SVG.
        """
        if self.en == self.zh:
            return escape(self.en)
        english = f'<{tag} class="en" lang="en">{escape(self.en)}</{tag}>'
        return Markup(f'{english}<{tag} class="zh" lang="zh-Hans">{escape(self.zh)}</{tag}>')


def both(value: object) -> Words:
    """The same text in both languages: names, numbers, what the user wrote."""
    return value if isinstance(value, Words) else Words(str(value), str(value))


def say(key: str, **values: object) -> Words:
    """The sentence `key` in both languages, its {places} filled in with text, numbers or other Words.

    Raises:
        KeyError: there is no such sentence, or a place has no value.
    """
    sentence = texts()[key]
    filled = {name: both(value) for name, value in values.items()}
    return Words(
        sentence.en.format(**{name: value.en for name, value in filled.items()}),
        sentence.zh.format(**{name: value.zh for name, value in filled.items()}),
    )


def named(group: str, name: object) -> Words:
    """The words for `name` of a group ("metric", "baseline", …), or the name itself where we have no words for it."""
    return texts().get(f"{group}.{name}") or both(name)


@lru_cache(maxsize=1)
def texts() -> dict[str, Words]:
    """All sentences by key."""
    raw = yaml.safe_load((files("chainrule.evaluation") / "templates" / TEXTS).read_text(encoding="utf-8"))
    return {key: Words(en=value["en"], zh=value["zh"]) for key, value in raw.items()}
