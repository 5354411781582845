"""Where a model is: a catalog name, a folder or a hub name, found and its files checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from chainrule.errors import ChainruleError, Problem, ShortageError, Where
from chainrule.models import convnet, lstm
from chainrule.models.catalog import MODELS, model_folder
from chainrule.models.folder import CONFIG, INDEX, WEIGHTS, check_files, refused, shard_names
from chainrule.system.files import sha256
from chainrule.system.hub import fetch, hub_error, unreachable
from chainrule.system.memory import is_shortage

FROM_SCRATCH = (lstm.NAME, convnet.NAME)  # models that are made from training rows


def locate(name: str) -> str:
    """The folder of a catalog name or a local folder; any other name is returned as it is: a hub name.

    Raises:
        ModelError: `name` looks like a path and there is no model folder.
    """
    folder = model_folder(name)
    if folder is not None:
        return str(folder)
    if name in FROM_SCRATCH:
        todo = "Train one, and name its artifact folder."
        raise refused(name, "a model with weights", "one that is made from training rows", todo)
    path = Path(name).expanduser()
    if _is_folder(path):
        if not (path / "config.json").is_file():
            raise refused(name, "a folder with config.json", "a folder without", "Give a Hugging Face model folder.")
        return str(path)
    is_there = os.path.exists(path)  # noqa: PTH110
    if is_there or name.startswith((".", "/", "~")) or name.count("/") > 1:
        got = "a file" if is_there else "no such folder"
        raise refused(name, "a model folder, a catalog name or a hub name", got, "See `chainrule show catalog`.")
    return name


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        name: what the user calls it.
        path: what transformers is to load: a folder, or a name on the hub.
        folder: where its files are: that folder, or the hub's cache.
        options: what transformers is to be told with it.
    """

    name: str
    path: str
    folder: Path
    options: dict[str, Any]


def find(name: str) -> Place:
    """Find a model and check its files; of a hub's model, the exact commit that was checked is loaded."""
    path = locate(name)
    options: dict[str, Any] = {"trust_remote_code": False}  # None would ask on the terminal
    folder = Path(path)
    if not _is_folder(path):
        # when the hub cannot be reached, only what was loaded before, without minutes of retries
        options["local_files_only"] = unreachable() is not None
        try:
            config = fetch(path, CONFIG, offline=options["local_files_only"])
        except (OSError, ValueError) as error:
            raise hub_error(name, error, tuple(MODELS)) from error
        if config is None:
            raise hub_error(name, FileNotFoundError(f"no {CONFIG}"), tuple(MODELS))
        folder = config.parent
        options["revision"] = folder.name
    check_files(folder, name)
    return Place(name, path, folder, options)


def fetch_weights(place: Place) -> None:
    """Bring the weights of a hub's model into its cache."""
    if _is_folder(place.path):
        return
    how = {"revision": place.options["revision"], "offline": place.options["local_files_only"]}
    try:
        if fetch(place.path, WEIGHTS, **how) is None and (index := fetch(place.path, INDEX, **how)) is not None:
            for file in shard_names(index, place.name):
                fetch(place.path, file, **how)
    except (OSError, ValueError) as error:
        raise hub_error(place.name, error, tuple(MODELS)) from error


def read_config(place: Place) -> Any:
    """The config.json of a model, of whatever family."""
    with loading(place):
        family = PreTrainedConfig.get_config_dict(place.path, **place.options)[0].get("model_type")
        kind = lstm.LSTMConfig if family == lstm.MODEL_TYPE else AutoConfig
        return kind.from_pretrained(place.path, **place.options)


@contextmanager
def loading(place: Place) -> Iterator[None]:
    """Quiet, and with one error: whatever a file of the folder makes the loading libraries raise."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a fresh head is expected, not worth a table of missing keys
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ChainruleError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # what Rust code raises
            raise
        if is_shortage(error):
            problem = Problem("memory for the model", str(error)[:300], "Choose a smaller model.", Where(place.name))
            raise ShortageError(f"There is not enough memory to load {place.name!r}.", [problem]) from error
        if not _is_folder(place.path):
            raise hub_error(place.name, error, tuple(MODELS)) from error
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise refused(
            place.name, "a Hugging Face model folder with safetensors weights", reason, "Check the folder's files."
        ) from error
    finally:
        transformers_logging.set_verbosity(level)


def weights_hash(name: str) -> str | None:
    """The SHA-256 of a model's weights where they lie in a single file on this machine; None for a hub name."""
    file = Path(locate(name)) / WEIGHTS
    return sha256(file) if file.is_file() else None


def _is_folder(place: str | Path) -> bool:
    return os.path.isdir(place)  # noqa: PTH112  (unlike Path.is_dir it takes a name too long for no folder)
