"""Checkpoints: what a run needs to go on as if it had never been stopped.

    checkpoints/step-00000120/    state.json, weights.safetensors, optimizer.safetensors
    checkpoints/best-00000100/    state.json, weights.safetensors, predictions.safetensors
    checkpoints/untuned/          state.json, predictions.safetensors

A folder is written beside its place, flushed to the disk and renamed, so that it is there whole or not at all. Its
state.json holds the SHA-256 of every other file and of itself.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chainrule.core.artifact import EVENTS
from chainrule.core.spans import as_arrays, from_arrays
from chainrule.core.task import Predictions
from chainrule.errors import ModelError, Problem, Where
from chainrule.kernels.adamw import catch_up, checked_state
from chainrule.system.files import atomic_folder, flush
from chainrule.system.seals import BrokenSealError, seal, unsealed
from chainrule.training.decisions import Decision, checkpoint_wanted
from chainrule.training.divergence import Losses
from chainrule.training.loop import Progress
from chainrule.training.optimizers import Optimizer, is_native

FORMAT_VERSION = 2
STATE, WEIGHTS, OPTIMIZER, PREDICTIONS = (
    "state.json",
    "weights.safetensors",
    "optimizer.safetensors",
    "predictions.safetensors",
)
Tensors = dict[str, torch.Tensor]


@dataclass
class Best:
    """The best weights so far, a copy of the trained parameters alone.

    Attributes:
        rank: what the task compares evaluations by; the larger, the better.
        ranks: those of all evaluations so far.
    """

    step: int = 0
    rank: tuple[float, float] = (-float("inf"), -float("inf"))
    metrics: dict[str, float] = field(default_factory=dict)
    predictions: Predictions | None = None
    weights: Tensors = field(default_factory=dict)
    ranks: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Standing:
    """Where a run stands: all that a checkpoint holds beside the weights.

    Attributes:
        seconds: of the steps so far.
        micro_batch_tokens: as it is now, where memory ran short since the run began.
        untuned: predictions on validation before step one, where the task compares with them.
        start: the trained weights before step one, until there is a checkpoint.
        retreats: how often training has diverged and gone back.
        rate_factor: on the learning rate since then.
        pending: what was decided when these steps were made before, and is to be decided again.
    """

    progress: Progress = field(default_factory=Progress)
    best: Best = field(default_factory=Best)
    seconds: float = 0.0
    micro_batch_tokens: int | None = None
    untuned: Predictions | None = None
    start: Tensors = field(default_factory=dict)
    losses: Losses = field(default_factory=Losses)
    retreats: int = 0
    rate_factor: float = 1.0
    pending: list[Decision] = field(default_factory=list)


class CheckpointError(Exception):
    """A checkpoint is torn, altered, or of another format; the text says which file and how."""


class Keeper:
    """Writes the checkpoints of one run when it is time, and keeps the newest and the best.

    Args:
        run: the run folder; its events.jsonl grows while the run goes on.
        minutes: of work between two checkpoints.
        keep: how many of the newest stay.
        halve: begin again with smaller micro-batches, since the system killed the process for want of memory.
        decided: by the run that is done again here.
    """

    def __init__(
        self, run: Path, minutes: float, keep: int, *, halve: bool = False, decided: Sequence[Decision] = ()
    ) -> None:
        self.run, self.halve, self.decided = run, halve, decided
        self.folder, self.events = run / "checkpoints", run / EVENTS
        self.seconds, self.keep = minutes * 60, keep
        self.last = time.monotonic()  # a clock that nobody sets back

    def due(self, standing: Standing) -> bool:
        """Whether the work since the last checkpoint is worth one, or there was one of this step before."""
        wanted = checkpoint_wanted(standing.pending, standing.progress.step)
        if wanted is None:
            return time.monotonic() - self.last >= self.seconds and not standing.losses.alarming
        return wanted

    def write(self, model: Any, trained: Iterable[str], standing: Standing) -> None:
        """Write a checkpoint of the step that was just made, and remove those that nobody needs any more.

        Args:
            trained: names of the parameters that any phase trains.

        Raises:
            OSError: it cannot be written; those that were there stay.
        """
        self.folder.mkdir(exist_ok=True)
        best, step = standing.best, standing.progress.step
        if standing.untuned is not None and not (self.folder / "untuned").exists():
            _write(self.folder / "untuned", {}, {PREDICTIONS: _of_predictions(standing.untuned)})
        if best.predictions is not None and not _is_whole(self._best(best.step)):
            files = {WEIGHTS: best.weights, PREDICTIONS: _of_predictions(best.predictions)}
            _write(self._best(best.step), {}, files)
        flush(self.events)
        weights, optimizer, numbers = _of_model(model, trained, standing.progress)
        state = {
            "step": step,
            "seconds": standing.seconds,
            "micro_batch_tokens": standing.micro_batch_tokens,
            "losses": asdict(standing.losses),
            "retreats": standing.retreats,
            "rate_factor": standing.rate_factor,
            "pending": standing.pending,
            "untuned": standing.untuned is not None,
            "events_bytes": self.events.stat().st_size,
            "optimizer": numbers,
            "generators": _generators(),
            "best": {
                "step": best.step,
                "rank": list(best.rank),
                "metrics": best.metrics,
                "ranks": best.ranks,
            }
            if best.predictions is not None
            else None,
        }
        _write(self.folder / _name_of(step), state, {WEIGHTS: weights, OPTIMIZER: optimizer})
        standing.start.clear()
        self._prune()
        self.last = time.monotonic()

    def newest(self, tell: Callable[[str], None], step: int | None = None) -> Found | None:
        """The newest checkpoint that is whole, and of no later step than `step`; what is wrong with newer ones is told.

        Returns:
            None where there is none: the run begins again at step 0.
        """
        paths = sorted(self.folder.glob("step-*"), reverse=True)
        for path in [path for path in paths if step is None or path.name <= _name_of(step)]:
            try:
                return self._read(path)
            except CheckpointError as error:
                tell(f"warning: the checkpoint {path.name} cannot be used ({error}); the one before is taken.")
        return None

    def _read(self, path: Path) -> Found:
        state = read_state(path)
        try:
            if not self.events.is_file() or self.events.stat().st_size < state["events_bytes"]:
                raise CheckpointError("events.jsonl is shorter than it was then")
            if not isinstance(state["pending"], list):
                raise TypeError("pending is no list")
            found = Found(path, state, _load(path / WEIGHTS), _load(path / OPTIMIZER))
            if state["best"] is not None:
                folder = self._best(state["best"]["step"])
                read_state(folder)
                found.best = _load(folder / WEIGHTS), _load(folder / PREDICTIONS)
            if state["untuned"]:
                read_state(self.folder / "untuned")
                found.untuned = _load(self.folder / "untuned" / PREDICTIONS)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path.name}/{STATE} is not what is written there: {error}") from error
        return found

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:08d}"

    def _prune(self) -> None:
        """Remove all but the newest checkpoints and the best weights that these refer to."""
        paths = sorted(self.folder.glob("step-*"), reverse=True)
        needed = set()
        for path in paths[: self.keep]:
            with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # an older one may be damaged
                best = json.loads((path / STATE).read_text(encoding="utf-8"))["best"]
                needed |= {self._best(best["step"])} if best else set()
        for path in [*paths[self.keep :], *(set(self.folder.glob("best-*")) - needed)]:
            shutil.rmtree(path, ignore_errors=True)


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


@dataclass
class Found:
    """A checkpoint that was read and is whole."""

    path: Path
    state: dict[str, Any]
    weights: Tensors
    optimizer: Tensors
    best: tuple[Tensors, Tensors] | None = None
    untuned: Tensors | None = None

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def put_into(self, model: Any, standing: Standing) -> None:
        """Give model and standing what they had then.

        Args:
            standing: with an optimizer over the parameters of the step's phase.

        Raises:
            ModelError: it is of another model, or not what is written there.
        """
        if standing.progress.optimizer is None:
            raise ValueError("an optimizer must be there to take its state back")
        try:
            self._put_into(model, standing, standing.progress.optimizer)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            todo = "Remove this checkpoint, so that the one before it is taken."
            problem = Problem("a checkpoint of this model", str(error)[:300], todo, Where(file=str(self.path)))
            raise ModelError(f"The checkpoint {self.path.name} cannot be used.", [problem]) from error

    def _put_into(self, model: Any, standing: Standing, optimizer: Optimizer) -> None:
        named = dict(model.named_parameters())
        targets = named | dict(model.named_buffers())
        for tensors in (self.weights, self.best[0] if self.best else {}):
            for name, value in tensors.items():
                if value.shape != targets[name].shape:
                    raise ValueError(f"{name} is of the shape {list(value.shape)}, not {list(targets[name].shape)}")
        with torch.no_grad():
            for name, value in self.weights.items():
                targets[name].copy_(value)
        for name, numbers in self.state["optimizer"].items():
            tensors = {key: self.optimizer[f"{name}/{key}"] for key in numbers["tensors"]}
            place = named[name].device
            moved = {key: value if key == "step" else value.to(place) for key, value in tensors.items()}
            state = {**numbers["numbers"], **moved}
            optimizer.state[named[name]] = checked_state(named[name], state) if is_native(optimizer) else state
        _set_generators(self.state["generators"])
        standing.progress.step, standing.seconds = self.step, float(self.state["seconds"])
        standing.micro_batch_tokens = self.state["micro_batch_tokens"]
        standing.losses = Losses(**self.state["losses"])
        standing.retreats, standing.rate_factor = self.state["retreats"], self.state["rate_factor"]
        standing.best = Best()
        if self.best is not None:
            kept, (weights, predictions) = self.state["best"], self.best
            rank, ranks = tuple(kept["rank"]), [(first, second) for first, second in kept["ranks"]]
            found = _to_predictions(predictions)
            standing.best = Best(kept["step"], rank, kept["metrics"], found, weights, ranks)
        if self.untuned is not None:
            standing.untuned = _to_predictions(self.untuned)


def _of_model(model: Any, trained: Iterable[str], progress: Progress) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Weights and buffers, the optimizer's tensors, and its plain numbers; rows that are behind catch up first."""
    if progress.optimizer is None:
        raise ValueError("a checkpoint is of a step that was made")
    named = dict(model.named_parameters())
    for name in trained:
        catch_up(named[name])
    weights = {name: named[name].detach() for name in trained}
    kept = set(model.state_dict())
    weights |= {name: value for name, value in model.named_buffers() if name in kept}
    names = {id(parameter): name for name, parameter in named.items()}
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for parameter, state in progress.optimizer.state.items():
        own = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        name = names[id(parameter)]
        tensors |= {f"{name}/{key}": value for key, value in own.items()}
        rest = {key: value for key, value in state.items() if key not in own}
        numbers[name] = {"tensors": sorted(own), "numbers": rest}
    return weights, tensors, numbers


def _of_predictions(predictions: Predictions) -> Tensors:
    parts = {"values": predictions.values, "scores": predictions.scores, "losses": predictions.losses}
    known = (as_arrays(name, part) for name, part in parts.items() if part is not None)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for found in known for name, array in found.items()}


def _to_predictions(tensors: Tensors) -> Predictions:
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return Predictions(from_arrays("values", arrays), arrays["scores"], arrays.get("losses"))


def _generators() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


def _set_generators(states: Mapping[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(states["torch"]))
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([_bytes(state) for state in states["cuda"]])


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _write(path: Path, state: dict[str, Any], files: Mapping[str, Tensors]) -> None:
    """A folder of safetensors files and a state.json that vouches for them."""
    if path.exists():  # torn, or of a run that went on from an earlier step
        shutil.rmtree(path)
    with atomic_folder(path) as folder:
        for name, tensors in files.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / name)
        seal(folder, STATE, {"format_version": FORMAT_VERSION, **state})


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a folder, once it and every file it names were found whole.

    Raises:
        CheckpointError: they are not.
    """
    try:
        state = unsealed(path, STATE)
    except BrokenSealError as error:
        raise CheckpointError(str(error)) from error
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"it is of format {state.get('format_version')!r}")
    return state


def _is_whole(path: Path) -> bool:
    try:
        read_state(path)
    except CheckpointError:
        return False
    return True


def _load(path: Path) -> Tensors:
    try:
        tensors: Tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    return tensors
