"""An engine that is not there, not reachable, or not the same."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import chainrule
from chainrule.core.engine import Engine
from chainrule.errors import MissingExtraError, RecipeError, UserError
from chainrule.scaling.cluster import require_same_version, take_place, where_we_are
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
def test_the_command_refuses(given: list[str], message: str, reviews: Path) -> None:
    data = [] if "--resume" in given else [str(reviews)]
    done = subprocess.run(
        [sys.executable, "-m", "chainrule", "train", *data, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_a_cluster_from_outside(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(UserError) as caught:
        chainrule.train(reviews, out=tmp_path / "run", engine=Engine("ray"))
    assert str(caught.value) == (
        "The cluster must be used from inside.\n"
        "  - field 'RAY_ADDRESS': expected HOST:PORT of the cluster's head, from one of its machines, got "
        "http://head:8265. From outside: ray job submit --address http://head:8265 -- chainrule … --engine ray"
    )


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
