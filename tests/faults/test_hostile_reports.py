"""What a person looks at afterwards: whatever users wrote is text there, in HTML, Markdown, YAML or a terminal."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.evaluation.report import write_report
from chainrule.testing.data import sentences

pytestmark = pytest.mark.unit
LABELS = ("<script>alert(1)</script>", "</style></title>'\"><img src=x onerror=alert(2)> javascript:alert(3)")
COLUMN = '"><svg onload=alert(4)> {{ 7 * 7 }} `|` [a](javascript:alert(5))\n---\n'
NAME = "evil\n---\nlicense: mit\n'\"><script>alert(6) [b](javascript:alert(7)).csv"
TEXT = "</td></table><script>alert(8)</script>\x1b[31m\u202e"


class Tags(HTMLParser):
    """Every tag and attribute of a page, and what of it is text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that can be learned, with harm in every place that a user fills."""
    path = tmp_path_factory.mktemp("data") / NAME
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", COLUMN])
        for row in sentences(160):
            writer.writerow([f"{row['text']} {TEXT}", LABELS[row["label"] == "positive"]])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_bert: Path) -> Run:
    out = tmp_path_factory.mktemp("runs") / "<b>run"
    settings = {"training.steps": 3, "training.threads": 1, "training.precision": "float32"}
    fields = {"label": COLUMN.strip()}
    trained = chainrule.train(str(data), model=str(tiny_bert), out=out, fields=fields, settings=settings)
    assert chainrule.evaluate(trained).split == "test"
    return trained


def test_the_page_of_a_run_shows_harm_as_text(run: Run) -> None:
    html = (run.path / "report.html").read_text(encoding="utf-8")
    page = Tags(html)
    names = [name for name, _ in page.tags]
    assert names.count("script") == names.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "a"} & set(names)
    attributes = {name for _, given in page.tags for name in given}
    assert not {"src", "href", "style", "action", "xlink:href"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    for label in LABELS:
        assert label in page.text
    assert "javascript:alert(3)" in page.text
    assert "alert(6)" in page.text
    policies = [given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert str(policies[0]).startswith("default-src 'none'; ")


def test_the_model_card_is_still_one_card(run: Run) -> None:
    card = (run.path / "artifact" / "README.md").read_text(encoding="utf-8")
    start, front, body = card.split("---\n", 2)
    assert start == ""
    values = yaml.safe_load(front)
    assert "license" not in values
    assert values["library_name"] == "transformers"
    assert values["tags"] == ["chainrule", "text-classification"]
    shown = re.sub(r"^```.*?^```", "", body, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^---$|^license", shown, re.MULTILINE)
    assert not re.search(r"(?<!\\)\]\(", shown), "a link"
    assert "<script>" not in shown
    assert "<img" not in shown
    assert ". &lt;script&gt;alert(1)&lt;/script&gt;" in shown


def test_names_in_the_files_of_a_run_are_data(run: Run) -> None:
    assert yaml.safe_load((run.path / "recipe.yaml").read_text(encoding="utf-8"))["data"]["source"].endswith(NAME)
    assert json.loads((run.path / "check.json").read_text(encoding="utf-8"))["fields"]["label"] == COLUMN.strip()
    assert yaml.safe_load((run.path / "resolved.yaml").read_text(encoding="utf-8"))["data"]["fields"] == {
        "label": COLUMN.strip()
    }


def spoken(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with pytest.raises(SystemExit):
        main(arguments)
    told = capsys.readouterr()
    return told.out, told.err


def test_a_terminal_is_told_nothing_but_text(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
    path = tmp_path / "a.csv"
    rows = "".join(f"text {n},{harm}{n % 2}\n" for n in range(40))
    path.write_text(f"text,label,{harm}\n{rows}", encoding="utf-8")
    arguments: list[list[str]] = [
        ["check", str(path)],
        ["check", str(path), "--label", harm],
        ["check", str(path), "--label", f"no such {harm}"],
        ["check", f"{tmp_path}/{harm}.csv"],
        ["predict", f"{tmp_path}/{harm}", "--text", "x"],
        ["train", str(path), "--set", f"a.b{harm}=1"],
    ]
    for command in arguments:
        for told in spoken(command, capsys):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told), command
    out, _ = spoken(["check", str(path)], capsys)
    assert r"\x1b]0;title\x07\x1b[2J\x9b31m\u202e1" in out


def test_a_name_that_is_no_text_is_told_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{tmp_path}/caf\udce9.csv"
    out, err = spoken(["check", name], capsys)
    assert "expected text that UTF-8 can write, got" in err
    out, _ = spoken(["check", name, "--json"], capsys)
    problem: Any = json.loads(out)["error"]["problems"][0]
    assert problem["where"]["field"] == "data.source"


def test_half_a_surrogate_pair_is_written_out_in_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "check.json").write_text('{"source": "a.csv", "splits": {"\\ud800": {"rows": 3}}}', encoding="ascii")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "\\ud800" in page
