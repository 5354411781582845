"""What docs/serving.md shows is run against a real server."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from chainrule.serving.limits import Limits
from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = {folder: (REPOSITORY / folder / "serving.md").read_text(encoding="utf-8") for folder in ("docs", "docs/zh")}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def requests(text: str) -> list[list[str]]:
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


def test_both_languages_show_the_same() -> None:
    assert requests(TEXTS["docs"]) == requests(TEXTS["docs/zh"])
    assert blocks(TEXTS["docs"], "python") == blocks(TEXTS["docs/zh"], "python")


@pytest.mark.parametrize("words", requests(TEXTS["docs"]), ids=lambda words: next(w for w in words if "http" in w))
def test_requests_of_the_document_are_answered(words: list[str], server: Server) -> None:
    assert words[0] == "curl"
    command = [word.replace("http://127.0.0.1:8000", server.url) for word in words]
    try:
        done = subprocess.run([*command, "--fail-with-body"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no curl")
    assert done.returncode == 0, done.stdout + done.stderr
    if "/metrics" in command[-1]:
        assert "chainrule_requests_total" in done.stdout
    elif '"stream": true' in command[-1]:
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert isinstance(json.loads(done.stdout), dict)


def test_python_of_the_document_runs(server: Server) -> None:
    (program,) = blocks(TEXTS["docs"], "python")
    program = program.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("folder", TEXTS)
def test_the_limits_of_the_document_are_the_defaults(folder: str) -> None:
    for name, number in (("max_body", "4,194,304"), ("max_rows", "1,000"), ("max_text", "100,000")):
        assert f"{getattr(Limits(), name):,}" == number
        assert re.search(rf"`--{name.replace('_', '-')}`[^|]*\| [^|]*{number}", TEXTS[folder])
    named = {name.replace("_", "-") for name in Limits.model_fields} - {"wait", "batch-tokens"}
    assert [name for name in named if f"`--{name}`" not in TEXTS[folder]] == []
    assert Limits().queue == 2000
    assert Limits().writing_queue == 32
    assert Limits().timeout == 30
    assert Limits().reading == 10
