"""The frozen layers' output, computed once and kept: later epochs, runs and trials start above them.

With its dropout off, a frozen layer gives the same for a row every time. The states lie in one file per split, memory-
mapped, under a hash of everything they follow from: weights, settings, depth, token ids, number format, versions.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from chainrule.data.batch import by_length, collate
from chainrule.data.encode import Encoded, States
from chainrule.errors import OutputError
from chainrule.inference.predict import BATCH_TOKENS, Forward, evaluating
from chainrule.kernels import native
from chainrule.models.trunk import is_whole, start_above, trunk_digest, trunk_states
from chainrule.system.files import atomic_path
from chainrule.system.progress import Display
from chainrule.system.store import Store

LIMIT_BYTES = 8 * 2**30  # all states in the cache together


@dataclass(frozen=True)
class Trunk:
    """Splits whose rows carry the states of the frozen layers.

    Attributes:
        seconds: spent on making the states now; 0 where all were there.
    """

    splits: dict[str, Encoded]
    seconds: float


def with_states(forward: Forward, depth: int, splits: dict[str, Encoded], display: Display) -> Trunk | None:
    """The splits with the states of the `depth` lowest layers; the model starts above them afterwards.

    Returns:
        None where the states have no room in the cache; the model is then as it was.
    """
    began = time.perf_counter()
    hidden, size = forward.model.config.hidden_size, 2 if forward.precision == "bfloat16" else 4
    whole = is_whole(forward.model, depth)
    shapes = {name: (len(split.offsets) - 1 if whole else len(split.ids), hidden) for name, split in splits.items()}
    wanted = sum(count for count, _ in shapes.values()) * hidden * size
    store = Store("trunks", LIMIT_BYTES)
    digest, made, done = trunk_digest(forward.model, depth), False, {}
    keys = {name: _key(digest, depth, forward.precision, split) for name, split in splits.items()}
    try:
        paths = {name: store.entry(f"{key}.bin") for name, key in keys.items()}
        missing = [name for name, path in paths.items() if not path.is_file()]
        if missing and not store.has_room(wanted):
            display.say(f"The output of the frozen layers ({wanted / 2**30:.1f} GB) has no room in the cache.")
            return None
        for name in missing:
            made = True
            _make(paths[name], forward, depth, splits[name], shapes[name], display)
        for name, path in paths.items():
            kind = np.uint16 if size == 2 else np.float32
            values = np.memmap(path, dtype=kind, mode="c", shape=shapes[name])
            done[name] = replace(splits[name], states=States(values, per_token=not whole))
        store.use(set(paths.values()))
    except (OSError, OutputError) as error:  # a cache that cannot be used is no reason to stop
        display.say(f"The output of the frozen layers is not kept: {error}")
        return None
    start_above(forward.model, depth)
    return Trunk(done, time.perf_counter() - began if made else 0.0)


def is_kept(forward: Forward, depth: int, splits: dict[str, Encoded]) -> bool:
    """Whether the states of these splits are in the cache."""
    store, digest = Store("trunks", LIMIT_BYTES), trunk_digest(forward.model, depth)
    keys = (_key(digest, depth, forward.precision, split) for split in splits.values())
    try:
        return all(store.entry(f"{key}.bin").is_file() for key in keys)
    except (OSError, OutputError):
        return False


def _make(path: Path, forward: Forward, depth: int, split: Encoded, shape: tuple[int, int], display: Display) -> None:
    """Compute the states of one split into one file, which appears when it is whole."""
    kind = np.uint16 if forward.precision == "bfloat16" else np.float32
    per_token = shape[0] == len(split.ids) and not is_whole(forward.model, depth)
    with (
        atomic_path(path) as unfinished,
        display.bar("computing the frozen layers once", len(split)) as bar,
        evaluating(forward.model),
        torch.inference_mode(),
        forward.autocast(),
    ):
        values = np.memmap(unfinished, dtype=kind, mode="w+", shape=shape)
        for rows in by_length(split.lengths, BATCH_TOKENS):
            batch = collate(split, rows, pad_id=forward.pad_id, left=forward.pad_left, device=forward.device)
            states = _stored(trunk_states(forward.model, depth, batch.inputs), forward.precision)
            for number, sequence in enumerate(split.different(rows)[0]):
                if not per_token:
                    values[sequence] = states[number, 0]
                    continue
                start, end = split.offsets[sequence], split.offsets[sequence + 1]
                at = states.shape[1] - (end - start) if forward.pad_left else 0
                values[start:end] = states[number, at : at + end - start]
            bar.advance(len(rows))
        values.flush()
        del values


def _stored(states: torch.Tensor, precision: str) -> np.ndarray:
    if precision == "bfloat16":
        return states.to(torch.bfloat16).cpu().view(torch.uint16).numpy()
    return states.float().cpu().numpy()


def _key(digest: str, depth: int, precision: str, split: Encoded) -> str:
    """The name of one split's file."""
    facts = [digest, str(depth), precision, torch.__version__, str(native.available())]
    key = hashlib.sha256("\n".join(facts).encode())
    for array in (split.ids, split.offsets, split.types):
        key.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return key.hexdigest()[:32]
