"""report.html: everything about one run on one page that needs no network."""

from __future__ import annotations

from pathlib import Path

from chainrule.evaluation import curves, judgement, sections
from chainrule.evaluation.card import model_card
from chainrule.evaluation.choice import choice
from chainrule.evaluation.languages import named, say
from chainrule.evaluation.layers import layers
from chainrule.evaluation.page import render
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
    return render(
        "report.html",
        title=say("title", run=record.name),
        run=record.name,
        task=named("task", record.task) if record.task else "",
        verdict=judgement.verdict(record),
        numbers=judgement.key_numbers(record),
        curves=curves.curves(record),
        facts=curves.facts(record),
        choice=choice(record),
        layers=layers(record),
        errors=sections.errors(record),
        classes=sections.classes(record),
        written=sections.written(record),
        baselines=judgement.baseline_table(record),
        every=judgement.every_evaluation(record),
        check=sections.data_check(record),
        recipe=sections.recipe(record),
        environment=sections.environment(record),
        usage=sections.usage(record),
        version=record.environment.get("chainrule") or record.manifest.get("chainrule_version") or "",
    )
