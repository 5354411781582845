"""Pages that need no network, from the templates.

A page carries both languages, light, dark and print styles. Its Content-Security-Policy names the hashes of its own
style sheet and script and forbids everything else, so that a label like <script> could do nothing even if it were not
escaped, and it is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from chainrule.evaluation.languages import say


def render(template: str, **values: Any) -> str:
    """One self-contained HTML page.

    Args:
        values: for the places of the template and of page.html: `title`, `run`, `task` and `version` among them.
    """
    css, script = _asset("report.css"), _asset("report.js")
    own = {"policy": _policy(css, script), "css": Markup(css), "script": Markup(script)}
    text = _templates().get_template(template).render(**own, **values)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair as JSON's escape


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("chainrule.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["say"] = say
    return environment


def _asset(name: str) -> str:
    return (files("chainrule.evaluation") / "templates" / name).read_text(encoding="utf-8")


def _policy(css: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
