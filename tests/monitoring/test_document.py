"""What docs/watching.md shows is run: its commands in order in one folder, and its request against a real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.testing.data import sentences, write_json_lines
from chainrule.testing.servers import start_at_once

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = {folder: (REPOSITORY / folder / "watching.md").read_text(encoding="utf-8") for folder in ("docs", "docs/zh")}


def commands(text: str, fence: str) -> list[list[str]]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in found if language == fence]
    return [shlex.split(line) for line in "\n".join(blocks).replace("\\\n", " ").splitlines() if line]


SHOWN = commands(TEXTS["docs"], "bash")
SERVERS = commands(TEXTS["docs"], "")


@pytest.fixture
def folder(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the document speaks of."""
    for name in ("reviews", "current", "first", "second"):
        shutil.copytree(trained.path, tmp_path / "runs" / name)
    rows = [
        row | {"at": str(1_772_323_200 + 60 * n), "source": ("web", "app")[n % 2]}
        for n, row in enumerate(sentences(300))
    ]
    write_json_lines(tmp_path / "news.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_languages_show_the_same() -> None:
    assert commands(TEXTS["docs/zh"], "bash") == SHOWN
    assert commands(TEXTS["docs/zh"], "") == SERVERS
    assert len(SHOWN) == 8
    assert len(SERVERS) == 4


def test_commands_of_the_document_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in SHOWN:
        if words[0] != "chainrule":
            continue
        with pytest.raises(SystemExit) as stop:
            main(words[1:])
        told = capsys.readouterr()
        assert stop.value.code == 0, (words, told.err)
        assert told.out.strip()
    assert "</html>" in (folder / "watch.html").read_text(encoding="utf-8")
    assert json.loads((folder / "doubtful.jsonl").read_text().splitlines()[0])["text"]


@pytest.mark.parametrize("words", SERVERS, ids=lambda words: " ".join(words[2:]))
def test_servers_of_the_document_start(words: list[str], folder: Path) -> None:
    assert words[:2] == ["chainrule", "serve"]
    server = start_at_once(words[2:])
    try:
        answer = server.post("/v1/predict", {"inputs": ["a lovely film"], "model": server.models[0]})
        assert answer.status_code == 200
        if len(server.models) > 1:
            return
        curl = next(words for words in SHOWN if words[0] == "curl")
        given = answer.json()["predictions"][0]["id"]
        command = [word.replace("http://127.0.0.1:8000", server.url).replace("pred-0123-0", given) for word in curl]
        if "--monitor" not in words:
            return
        try:
            done = subprocess.run([*command, "--fail-with-body"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no curl")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["id"] == given
    finally:
        server.end()
