"""An end that is asked for by a signal or, where signals do not reach, in a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from chainrule.system.stop import StopRequest, stop_requests, told_by

pytestmark = pytest.mark.unit


def asked(request: StopRequest) -> int | None:
    return request.signal


def test_a_first_signal_is_noted_and_a_second_one_acts() -> None:
    told: list[str] = []
    with stop_requests(told.append) as request:
        assert asked(request) is None
        os.kill(os.getpid(), signal.SIGINT)
        assert asked(request) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert told == ["Stopping at the end of this step; once more stops at once."]


def test_a_file_asks_where_it_is_listened_to(tmp_path: Path) -> None:
    file = tmp_path / "stop.txt"
    with told_by(file), stop_requests(print) as request:
        assert asked(request) is None
        file.touch()
        assert asked(request) is None
        file.write_text(str(signal.SIGTERM.value), encoding="ascii")
        assert asked(request) == signal.SIGTERM
    with stop_requests(print) as request:
        assert asked(request) is None
