"""Tokenised rows, kept in the cache: the same rows are tokenised once with each tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.core.spans import Answers, Spans
from chainrule.core.task import Encode
from chainrule.data.encode import OF_TOKENS, Encoded
from chainrule.data.texts import CHUNK_ROWS, Texts
from chainrule.errors import OutputError
from chainrule.system.files import atomic_folder
from chainrule.system.seals import BrokenSealError, seal, unsealed
from chainrule.system.store import Store, remove
from chainrule.version import __version__

FORMAT = 3  # goes up with every change of what an `encode` gives
LIMIT_BYTES = 4 * 2**30  # all tokens in the cache together
FEWEST_CHARACTERS = 1_000_000  # to tokenise them takes about a second, to find them in the cache a tenth of that
_DOCUMENT = "tokens.json"
_ARRAYS = ("offsets", "full_lengths", "sequences", "shared", "references", *OF_TOKENS)


def encode_once(encode: Encode, tokenizer: Any, inputs: Mapping[str, Texts], targets: Any, max_length: int) -> Encoded:
    """What `encode` gives, from the cache where it is there.

    Few texts are encoded each time, and so are those of a tokenizer that cannot be compared with another.
    """
    characters = sum(len(text) for texts in inputs.values() for text in texts)
    store, entry = Store("tokens", LIMIT_BYTES), None
    if characters >= FEWEST_CHARACTERS and hasattr(tokenizer, "backend_tokenizer"):
        with suppress(OSError):  # a cache that cannot be used is no reason to stop
            entry = store.entry(_key(encode, tokenizer, inputs, targets, max_length))
    found = _kept(entry) if entry is not None else None
    encoded: Encoded = encode(tokenizer, inputs, targets, max_length) if found is None else found
    if entry is not None:
        with suppress(OSError, OutputError):
            if found is None:
                _keep(entry, encoded, store)
            store.use([entry])
    return encoded if isinstance(targets, Texts) else replace(encoded, targets=targets)


def _kept(entry: Path) -> Encoded | None:
    """What was kept, memory-mapped; None where there is nothing, or it is no longer what it was."""
    if not entry.is_dir():
        return None
    try:
        document = unsealed(entry, _DOCUMENT)
        names = [Path(file).stem for file in document["files"]]
        arrays: dict[str, Any] = {name: np.asarray(np.load(entry / f"{name}.npy", mmap_mode="r")) for name in names}
    except (BrokenSealError, OSError, ValueError):
        remove(entry)
        return None
    refused = {int(row): why for row, why in document["refused"].items()}
    return Encoded(**{"types": None, "targets": None} | arrays, refused=refused)


def _keep(entry: Path, encoded: Encoded, store: Store) -> None:
    """Write what follows from the tokens, if there is room."""
    found = {name: getattr(encoded, name) for name in (*_ARRAYS, "targets")}
    arrays = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    if encoded.trained is None:  # targets of whole rows are given again
        arrays.pop("targets", None)
    if not store.has_room(sum(array.nbytes for array in arrays.values())):
        return
    with atomic_folder(entry) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        seal(folder, _DOCUMENT, {"refused": encoded.refused})


def _key(encode: Encode, tokenizer: Any, inputs: Mapping[str, Texts], targets: Any, max_length: int) -> str:
    """A hash of everything that the tokens follow from."""
    inner = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # set at each call
    facts = {
        "format": [FORMAT, __version__, *(version(name) for name in ("tokenizers", "transformers", "jinja2"))],
        "encode": [encode.__module__, repr(encode) if is_dataclass(encode) else "", max_length],
        "tokenizer": [type(tokenizer).__name__, tokenizer.chat_template, tokenizer.model_input_names, inner],
        "special": [tokenizer.special_tokens_map, tokenizer.truncation_side],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, texts in {**inputs, "reply": targets}.items():
        if isinstance(texts, Texts):
            key.update(f"\0{name}\0{len(texts)}\0".encode())
            for start in range(0, len(texts), CHUNK_ROWS):
                few = texts[start : start + CHUNK_ROWS].to_list()
                key.update(np.array([len(text) for text in few]).tobytes() + "".join(few).encode())
    targets = targets.spans if isinstance(targets, Answers) else targets
    if isinstance(targets, Spans):
        key.update(targets.offsets.tobytes() + targets.bounds.tobytes())
    return key.hexdigest()[:32]
