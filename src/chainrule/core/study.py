"""The Study: many Runs that belong together, as a folder that a search leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainrule.core.artifact import Run
from chainrule.system.files import read_json

SEARCH, STUDY, DATABASE, PAGE, WINNER = "search.json", "study.json", "study.db", "report.html", "run"


@dataclass(frozen=True)
class Study:
    """search.json (what was asked), study.db (the trials), study.json, report.html, run/ (the winner)."""

    path: Path

    @property
    def run(self) -> Run:
        """The winner, trained whole."""
        return Run(self.path / WINNER)

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON document that `search` printed. Empty for one that did not finish."""
        file = self.path / STUDY
        return read_json(file) if file.is_file() else {}
