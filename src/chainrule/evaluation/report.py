"""report.html: everything about one run on one page that needs no network.

The page carries both languages, light, dark and print styles. Its Content-Security-Policy names the hashes of its own
style sheet and script and forbids everything else, so that a label like <script> could do nothing even if it were not
escaped, and it is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from chainrule.evaluation import curves, judgement, sections
from chainrule.evaluation.card import model_card
from chainrule.evaluation.languages import Words, named, say
from chainrule.evaluation.layers import layers
from chainrule.evaluation.record import read_record
from chainrule.system.files import write_text

REPORT = "report.html"

__all__ = ["model_card", "render_report", "write_report"]


def write_report(run_folder: Path) -> Path:
    """Render the report of a run folder and put it there as report.html, replacing an older one atomically.

    Returns:
        The path of the page.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = run_folder / REPORT
    write_text(path, render_report(run_folder))
    return path


def render_report(run_folder: Path) -> str:
    """The report of a run folder as one self-contained HTML page.

    Any file of the folder may be missing, as in a run that did not finish: the page shows what there is and says that
    the run is not finished.

    Args:
        run_folder: the folder that `train` writes (recipe.yaml, events.jsonl, check.json, evaluations/ …).
    """
    record = read_record(run_folder)
    css, script = _asset("report.css"), _asset("report.js")
    title = say("title", run=record.name)
    return (
        _templates()
        .get_template("report.html")
        .render(
            title=Words(title.en, title.zh),
            policy=_policy(css, script),
            css=Markup(css),
            script=Markup(script),
            run=record.name,
            task=named("task", record.task) if record.task else "",
            verdict=judgement.verdict(record),
            numbers=judgement.key_numbers(record),
            curves=curves.curves(record),
            facts=curves.facts(record),
            layers=layers(record),
            errors=sections.errors(record),
            classes=sections.classes(record),
            baselines=judgement.baseline_table(record),
            every=judgement.every_evaluation(record),
            check=sections.data_check(record),
            recipe=sections.recipe(record),
            environment=sections.environment(record),
            usage=sections.usage(record),
            version=record.environment.get("chainrule") or record.manifest.get("chainrule_version") or "",
        )
    )


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
