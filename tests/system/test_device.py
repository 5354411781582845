"""What this machine has."""

from __future__ import annotations

import pytest
import torch

from chainrule.system.device import physical_cores, use_threads

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("said", "wanted"), [("1", 1), ("1,2", 1), ("", None), ("many", None)])
def test_the_environment_decides_the_threads(said: str, wanted: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    try:
        assert use_threads(None) == torch.get_num_threads() == (wanted or physical_cores())
    finally:
        torch.set_num_threads(before)
