"""An engine that is not there, not reachable, or not the same."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.cli import main
from chainrule.cli.submit import Sorted
from chainrule.core.engine import Engine
from chainrule.errors import MissingExtraError, RecipeError, UserError
from chainrule.scaling.cluster import require_same_version, take_place, where_we_are
from chainrule.scaling.jobs import entry_of
from chainrule.testing.clusters import free_port, plain_environment
from chainrule.version import __version__

pytestmark = pytest.mark.unit


def test_there_is_no_such_engine() -> None:
    with pytest.raises(RecipeError) as caught:
        Engine("spark")
    assert str(caught.value) == (
        "There is no engine 'spark'.\n"
        "  - field 'engine': expected one of ray, got 'spark'. Leave it out for this process alone."
    )
    with pytest.raises(RecipeError, match="There must be a worker"):
        Engine("ray", workers=0)


def test_ray_is_not_installed(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        chainrule.train(reviews, out=tmp_path / "run", engine=Engine("ray"))
    assert caught.value.message == "--engine ray needs an optional package: pip install 'chainrule[ray]'"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--engine", "spark"], "There is no engine 'spark'."),
        (["--workers", "2"], "it goes with --engine ray"),
        (["--resume", "nowhere", "--engine", "ray"], "There is no run at nowhere."),
    ],
)
def test_the_command_refuses(given: list[str], message: str, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [] if "--resume" in given else [str(reviews)]
    with pytest.raises(SystemExit) as stop:
        main(["train", *data, *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001"])
def test_a_cluster_from_outside(address: str, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        chainrule.train(reviews, out=tmp_path / "run", engine=Engine("ray"))
    assert str(caught.value) == (
        "The cluster must be used from inside.\n"
        "  - field 'RAY_ADDRESS': expected HOST:PORT of the cluster's head, from one of its machines, got "
        f"{address}. From outside give the command, `chainrule … --engine ray`, with the address of the cluster's "
        "dashboard, such as RAY_ADDRESS=http://HEAD:8265; it is submitted as a job."
    )


def test_a_command_for_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    for words in (["train", "rows.csv"], ["predict", "run", "rows.csv", "--out", "x.csv"], ["search", "--resume", "s"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--engine", "ray"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == (
            "Error: The job cannot be submitted.\n"
            "  - field 'RAY_ADDRESS': expected the address of a Ray cluster's dashboard, such as http://HEAD:8265, got "
            f"{address}: [Errno 111] Connection refused. Check `ray job list --address {address}`; the head must be "
            "started with ray[default]. Or unset RAY_ADDRESS for workers on this machine.\n"
        )


def test_a_job_begins_where_the_command_was_given(tmp_path: Path) -> None:
    folder = tmp_path / "a folder's"
    entry = entry_of(["--version"], folder)
    environment = plain_environment({})
    unseen = subprocess.run(["bash", "-c", entry], capture_output=True, text=True, check=False, env=environment)
    assert unseen.returncode == 2
    assert unseen.stderr.startswith("Error: The cluster does not see the folder of the command.\n")
    folder.mkdir()
    done = subprocess.run(["bash", "-c", entry], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, f"chainrule {__version__}\n"), done.stderr


def test_what_a_job_says_is_sorted(capsys: Any) -> None:
    said = 'Training.\n{this is no document\nstep 1\n{\n  "run": "r"\n}\n'
    for with_document in (True, False):
        job = Sorted(with_document)
        for place in range(0, len(said), 5):
            job.take(said[place : place + 5])
        job.end()
        told = capsys.readouterr()
        if with_document:
            assert json.loads(told.out) == {"run": "r"}
            assert told.err == "Training.\n{this is no document\nstep 1\n"
        else:
            assert (told.out, told.err) == (said, "")


def test_an_unreachable_cluster(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        chainrule.train(reviews, out=tmp_path / "run", engine=Engine("ray"))
    assert str(caught.value) == (
        "The Ray cluster cannot be used.\n"
        "  - field 'RAY_ADDRESS': expected a Ray cluster of the version that is installed here, got "
        f"{address}: [Errno 111] Connection refused. Check `ray status --address {address}`, and that its token is "
        "known here if it asks for one; or unset RAY_ADDRESS for workers on this machine."
    )


def test_a_worker_has_another_version() -> None:
    require_same_version(__version__)
    with pytest.raises(UserError) as caught:
        require_same_version("0.0.9")
    assert str(caught.value) == (
        "A worker has another version of Chainrule.\n"
        f"  - expected Chainrule 0.0.9, as where the command was given, got {__version__}. "
        "Install chainrule==0.0.9 on every machine of the cluster."
    )


def test_a_worker_goes_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = where_we_are()
    monkeypatch.chdir(tmp_path)
    take_place(place)
    assert Path.cwd() == tmp_path / "here"
    (tmp_path / "here").rmdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="A worker does not see the folder of the command"):
        take_place(place)
