"""The hub's answers, from a server on the loopback address that speaks as the hub does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.unit

PROGRAM = """
import sys
from chainrule.system.telemetry import turn_off_telemetry
turn_off_telemetry()
from transformers import AutoConfig
from chainrule.system.hub import hub_data_error, hub_error, unreachable
for name in sys.argv[1:]:
    cut_off = unreachable()
    try:
        AutoConfig.from_pretrained(name, local_files_only=cut_off is not None)
    except (OSError, ValueError) as error:
        print(hub_error(name, error, ["small", "large"]).message)
print(hub_data_error("some/data", OSError("no")).message)
"""


class Hub(BaseHTTPRequestHandler):
    """Knows no model except one that is gated and one without files."""

    def do_HEAD(self) -> None:
        code = {"gated": "GatedRepo", "bare": "EntryNotFound"}.get(self.path.split("/")[1], "RepoNotFound")
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def messages(endpoint: str, home: str, *names: str) -> list[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": home, "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr
    return done.stdout.splitlines()


def test_what_the_hub_says_in_one_line(hub: str, tmp_path: os.PathLike[str]) -> None:
    missing, gated, bare, data = messages(hub, str(tmp_path), "no/such", "gated/model", "bare/model")
    choices = "Without the hub: a local model folder, or one of small, large."
    assert missing == f"Cannot load the model 'no/such': the hub has no such model. {choices}"
    assert gated == f"Cannot load the model 'gated/model': the hub's model is gated. {choices}"
    assert bare.startswith("Cannot load the model 'bare/model': it is on the hub but cannot be loaded (")
    assert data.startswith("Cannot load the data set 'some/data': it is on the hub but cannot be loaded (no).")


def test_a_hub_that_cannot_be_reached(tmp_path: os.PathLike[str]) -> None:
    model, data = messages("http://127.0.0.1:9", str(tmp_path), "no/such")
    assert model == (
        "Cannot load the model 'no/such': the Hugging Face hub cannot be reached (connection refused). "
        "Without the hub: a local model folder, or one of small, large."
    )
    assert data.endswith("Without the hub: a local file or folder, or a name of `chainrule show catalog`.")
