"""Ways to make an attention: each is right, the fastest is taken, and every process takes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chainrule.kernels import fastest as kept
from chainrule.kernels import native
from chainrule.kernels.attention import self_attention
from chainrule.kernels.fastest import fastest

pytestmark = pytest.mark.unit


class Clock:
    """One that goes on by what is said to have taken time."""

    def __init__(self) -> None:
        self.now = 0.0

    def ways(self, **seconds: float) -> dict[str, Callable[[], None]]:
        return {name: lambda taken=taken: self.pass_by(taken) for name, taken in seconds.items()}  # type: ignore[misc]

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(kept, "perf_counter", lambda: made.now)
    return made


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ways are kept, in a cache of its own."""
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    return native.library_path().with_suffix(f".torch-{torch.__version__}.json")


def test_the_fastest_is_taken_and_stays(clock: Clock, file: Path) -> None:
    assert fastest("sleep", clock.ways(short=0.001, long=0.02)) == "short"
    (entry,) = json.loads(file.read_text()).values()
    assert entry["way"] == "short"
    assert entry["milliseconds"] == {"short": 1.0, "long": 20.0}
    kept._known.cache_clear()  # as another process begins
    assert fastest("sleep", clock.ways(short=0.02, long=0.001)) == "short"
    assert fastest("other", clock.ways(short=0.02, long=0.001)) == "long"
    assert len(json.loads(file.read_text())) == 2


def test_the_first_process_that_writes_decides(clock: Clock, file: Path) -> None:
    assert fastest("one", clock.ways(short=0.001, long=0.02)) == "short"
    others = json.loads(file.read_text())
    (case,) = others
    file.write_text(json.dumps(others | {case.replace("one", "two"): {"way": "long", "milliseconds": {}}}))
    assert fastest("two", clock.ways(short=0.001, long=0.02)) == "long"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"damaged": 1}'])
def test_a_damaged_file_is_written_anew(clock: Clock, file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert fastest("sleep", clock.ways(short=0.001, long=0.02)) == "short"
    assert "short" in file.read_text()


def test_a_way_that_is_not_there_any_more_is_forgotten(clock: Clock, file: Path) -> None:
    assert fastest("sleep", clock.ways(short=0.001, long=0.02)) == "short"
    file.write_text(file.read_text().replace('"way": "short"', '"way": "shorter"'))
    kept._known.cache_clear()
    assert fastest("sleep", clock.ways(short=0.001, long=0.02)) == "short"


def test_without_a_folder_to_write_to(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CHAINRULE_CACHE", str(blocked))
    assert fastest("sleep", clock.ways(short=0.001, long=0.02)) == "short"


def test_the_variable_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "tiles", lambda: False)
    monkeypatch.setenv("CHAINRULE_ATTENTION", "products")
    self_attention(torch.randn(4, 20, 3 * 2 * 16), 2, None, 0.25, 0.0)
    assert not file.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["products", "head by head", "flash"])
@pytest.mark.parametrize("mask", ["none", "keys", "queries"])
@pytest.mark.parametrize("learning", [True, False])
def test_every_way_is_the_same_attention(
    dtype: torch.dtype, way: str, mask: str, learning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients against the formula in float64; a row that sees nothing is the mean of all."""
    monkeypatch.setenv("CHAINRULE_ATTENTION", way)
    monkeypatch.setattr(native, "tiles", lambda: False)
    torch.manual_seed(0)
    batch, heads, length, size = 3, 4, 17, 16
    projected = torch.randn(batch, length, 3 * heads * size).to(dtype).requires_grad_()
    seen = torch.rand(batch, 1, length if mask == "queries" else 1, length) > 0.3
    seen[..., 0] = True
    seen[1] = False
    above = torch.randn(batch, length, heads * size)

    plain = projected.detach().double().requires_grad_()
    query, key, value = plain.view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) * 0.25
    weights = torch.softmax(scores if mask == "none" else scores.masked_fill(~seen, -1e30), -1)
    expected = (weights @ value).transpose(1, 2).flatten(2)
    (wanted,) = torch.autograd.grad(expected, plain, above.double())

    given = None if mask == "none" else seen.expand(-1, heads, -1, -1)
    close = 1e-5 if dtype == torch.float32 else 4e-2
    with torch.set_grad_enabled(learning):
        found = self_attention(projected, heads, given, 0.25, 0.0)
    assert torch.allclose(found.double(), expected, atol=close)
    if learning:
        (gradient,) = torch.autograd.grad(found, projected, above.to(dtype))
        assert torch.isfinite(gradient).all()
        assert torch.allclose(gradient[[0, 2]].double(), wanted[[0, 2]], atol=close, rtol=close)


def test_what_is_timed_is_not_counted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is estimated by what a first forward keeps."""
    monkeypatch.setattr(native, "tiles", lambda: False)
    projected = torch.randn(4, 20, 3 * 2 * 16).requires_grad_()
    counted = []
    for _ in range(2):  # timed, and known
        kept_bytes = list[int]()

        def pack(tensor: torch.Tensor, kept_bytes: list[int] = kept_bytes) -> torch.Tensor:
            kept_bytes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self_attention(projected, 2, None, 0.25, 0.2)
        counted.append(sum(kept_bytes))
    assert counted[0] == counted[1] > 0


def test_timing_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither random numbers nor gradients."""
    monkeypatch.setattr(native, "tiles", lambda: False)
    projected = torch.randn(4, 20, 3 * 2 * 16).requires_grad_()
    results = []
    for _ in range(2):  # timed, and known
        torch.manual_seed(3)
        result = self_attention(projected, 2, None, 0.25, 0.2)
        results.append((result.detach(), torch.get_rng_state()))
    assert projected.grad is None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    if native.available():
        (case,) = json.loads(file.read_text())
        assert case.startswith("attention float32 heads of 16 32 tokens dropout training; 1 threads; head by head, ")


def test_processes_that_begin_at_once_agree(file: Path) -> None:
    program = (
        "from chainrule.kernels.fastest import fastest\nimport time\n"
        "ways = {name: lambda: time.sleep(0.001) for name in 'ab'}\n"
        "print([fastest(f'case {number}', ways) for number in range(4)])"
    )
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert said[0] == said[1] != ""
    assert len(json.loads(file.read_text())) == 4
