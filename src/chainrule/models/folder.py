"""A model folder from anywhere, checked before anything of it is loaded or allocated.

Weights are safetensors: tensors and a header that says what they are. Nothing in the folder is run, and no file in it
may lead out of it. What `config.json` describes must be as large as what the weights hold.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from chainrule.errors import ModelError, Problem, Where
from chainrule.system.files import read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_PARTS = 4_096  # layers, heads, experts: each may be an object of its own before its size is known
MAX_LABELS = 1_000_000
FEW_LAYERS = 64  # that may share their weights
SPARE = 2**24  # numbers that a model may compute beside those it has stored, such as tables of positions

Shapes = dict[str, tuple[int, ...]]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHERS = (".h5", ".msgpack", ".onnx", ".gguf", ".ot")
_DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
_LAYERS = re.compile(r"(layers?|blocks|depths?|stages)$")
_PARTS = re.compile(rf"{_LAYERS.pattern}|(experts|heads?|groups)$")
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation(_internal)?$")


def check_files(folder: Path, name: str) -> None:
    """Refuse links that leave the folder, and a config.json that asks for code or for endless parts.

    Args:
        name: what the user calls the model.

    Raises:
        ModelError: there is such a file.
    """
    home = folder.resolve()
    # the hub's cache: snapshots/COMMIT/FILE is a link to ../../blobs/HASH
    allowed = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    for path in _files(folder):
        shown = path.relative_to(folder).as_posix()
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            todo = "Put the file itself into the folder, if you trust where it comes from."
            raise refused(name, "files inside the folder", f"a link to {target}", todo, shown)
        if target.exists() and not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
            raise refused(name, "ordinary files", "a device or a pipe", "Remove it.", shown)
    for file in (CONFIG, "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            _check_values(read_json(folder / file), name, file)


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files with a model's weights.

    Raises:
        ModelError: there are none, or the index of several names anything but files of the folder.
    """
    found = [path.name for path in folder.iterdir()]
    if "adapter_config.json" in found:
        todo = "Name the model that the adapters were trained on."
        raise refused(name, "a whole model", "adapters of another one", todo, "adapter_config.json")
    strange = next((file for file in found if _DISTRIBUTED.fullmatch(file)), None)
    if strange is not None:
        raise refused(name, f"weights in {WEIGHTS} or in shards of {INDEX}", strange, "Save it as a whole.", strange)
    if WEIGHTS in found:
        return [folder / WEIGHTS]
    if INDEX not in found:
        raise _no_weights(name, sorted(found))
    return [folder / file for file in shard_names(folder / INDEX, name)]


def shard_names(index: Path, name: str) -> list[str]:
    """The files that an index of shards names, each once.

    Raises:
        ModelError: it names none, or anything but plain names of safetensors files.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        todo = "Take a copy of the model that is whole."
        raise refused(name, "a weight_map from tensors to files", _cut(places), todo, index.name)
    files = list(dict.fromkeys(map(str, places.values())))
    for file in files:
        if re.search(r"[\\/:\x00-\x1f]", file) or file.startswith(".") or not file.endswith(".safetensors"):
            todo = "Do not use this model: its index leads out of its folder, or to other than safetensors."
            raise refused(name, "names of safetensors files in the folder", _cut(file), todo, index.name)
    return files


def stored_shapes(files: Collection[Path], name: str) -> Shapes:
    """The shapes of all tensors in safetensors files, by their headers alone; nothing is allocated.

    A header that is larger than 100 MB, or whose offsets are not those of its types and shapes and of the file's
    length, is refused by safetensors itself.

    Raises:
        ModelError: a file is missing or damaged.
    """
    shapes: Shapes = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            todo = "Take a copy of the model that is whole."
            raise refused(name, "a whole safetensors file", str(error)[:200], todo, path.name) from error
    return shapes


def check_depth(folder: Path, shapes: Shapes, name: str) -> None:
    """Refuse a config.json with far more layers than there are tensors: each would be made before its size is known.

    Raises:
        ModelError: it has.
    """
    most = max(FEW_LAYERS, len(shapes))
    for key, value in _numbers_and_texts(read_json(folder / CONFIG), ""):
        if not isinstance(value, str) and _LAYERS.search(key) and value > most:
            got = f"{key} = {_cut(value)}"
            raise refused(name, f"at most {most:,} layers for {len(shapes):,} stored tensors", got, _UNFIT, CONFIG)


def check_fit(model: Any, shapes: Shapes, fresh: Collection[str], name: str) -> None:
    """Refuse weights of other shapes, or of another size, than a model's configuration describes.

    Args:
        model: as `config.json` describes it, without memory (on torch's device "meta").
        shapes: of the stored tensors.
        fresh: modules that may be made anew, such as a head for other labels.

    Raises:
        ModelError: they do not fit.
    """
    parameters = dict(model.named_parameters())
    wanted = {key: tuple(tensor.shape) for key, tensor in parameters.items() if not is_in(key, fresh)}
    prefix = f"{model.base_model_prefix}."
    for key, shape in shapes.items():
        place = next((other for other in (key, prefix + key, key.removeprefix(prefix)) if other in wanted), None)
        if place is not None and wanted[place] != shape:
            got = f"{key} of the shape {list(shape)} in the weights"
            raise refused(name, f"{place} of the shape {list(wanted[place])}, as in {CONFIG}", got, _UNFIT)
    buffers = {key: tuple(tensor.shape) for key, tensor in model.named_buffers()}
    size, stored = (sum(map(prod, part.values())) for part in (wanted | buffers, shapes))
    if size > 2 * stored + SPARE:
        raise refused(name, f"weights for the {size:,} numbers that {CONFIG} describes", f"{stored:,}", _UNFIT)


def check_loaded(found: Mapping[str, Any], fresh: Collection[str], name: str) -> None:
    """Refuse a model of which more than the `fresh` modules had to be made anew.

    Args:
        found: what transformers tells of a loading.

    Raises:
        ModelError: weights are missing, or have other shapes.
    """
    mismatched = [key[0] if isinstance(key, tuple | list) else key for key in found["mismatched_keys"]]
    missing = sorted(key for key in {*found["missing_keys"], *mismatched} if not is_in(key, fresh))
    if missing:
        got = f"{len(missing):,} of them missing or of another shape: {', '.join(missing[:5])}"
        raise refused(name, "all weights of the pretrained model", got, _UNFIT)


def is_in(key: str, modules: Collection[str]) -> bool:
    """Whether a parameter lies in one of the modules."""
    return any(key == module or key.startswith(f"{module}.") for module in modules)


def refused(name: str, expected: str, got: str, todo: str, file: str | None = None) -> ModelError:
    """The error for a model that cannot be used; `file` is a name inside its folder."""
    where = Where(file=name if file is None else f"{name}/{file}", field="model.name")
    return ModelError(f"The model {name!r} cannot be used.", [Problem(expected, got, todo, where)])


_UNFIT = f"Take {CONFIG} and weights that belong together."


def _files(folder: Path) -> Iterator[Path]:
    """What the loading libraries may read."""
    yield from folder.iterdir()
    templates = folder / "additional_chat_templates"
    if templates.is_dir() and templates.resolve().is_relative_to(folder.resolve()):
        yield from templates.iterdir()


def _check_values(values: Mapping[str, Any], name: str, file: str) -> None:
    family = values.get("model_type")
    if file == CONFIG and "auto_map" in values and family not in CONFIG_MAPPING:
        got = f"code of its own (auto_map) for the family {_cut(family)}"
        todo = "Code that comes with a model is never run: choose a model of a family that transformers knows."
        raise refused(name, "a family that transformers knows", got, todo, file)
    if values.get("transformers_weights") is not None:
        todo = f"Rename the weights to {WEIGHTS}, and remove transformers_weights."
        raise refused(name, f"weights in {WEIGHTS}", _cut(values["transformers_weights"]), todo, file)
    for key, value in _numbers_and_texts(values, ""):
        if isinstance(value, str):
            if _IMPLEMENTATIONS.match(key) and "/" in value:
                todo = f"Remove {key}: code from the hub is never run."
                raise refused(name, "one of transformers' own implementations", _cut(value), todo, file)
        elif value > (MAX_LABELS if key.endswith("labels") else MAX_PARTS if _PARTS.search(key) else value):
            limit = MAX_LABELS if key.endswith("labels") else MAX_PARTS
            todo = "Do not use this model, or correct the number."
            raise refused(name, f"{key} of at most {limit:,}", _cut(value), todo, file)


def _numbers_and_texts(value: Any, key: str) -> Iterator[tuple[str, int | float | str]]:
    """Every number and text of a JSON value with the key it stands under; without recursion, whatever the depth."""
    waiting = [(key, value)]
    while waiting:
        place, part = waiting.pop()
        if isinstance(part, dict):
            waiting += [(str(inner) if not _IMPLEMENTATIONS.match(place) else place, part[inner]) for inner in part]
        elif isinstance(part, list):
            waiting += [(place, inner) for inner in part]
        elif isinstance(part, int | float | str) and not isinstance(part, bool):
            yield place, part


def _no_weights(name: str, found: list[str]) -> ModelError:
    pickles = [file for file in found if PurePath(file).suffix in _PICKLES]
    others = [file for file in found if PurePath(file).suffix in _OTHERS]
    if pickles:
        got = f"{', '.join(pickles[:3])}: pickle files, which can run any code"
        todo = (
            "They are never read. If you trust where they come from, load them once with transformers itself and save "
            "them again: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
        )
        return refused(name, f"weights as safetensors ({WEIGHTS})", got, todo)
    got = ", ".join(others[:3]) or f"no weights among {len(found):,} files"
    return refused(name, f"weights as safetensors ({WEIGHTS})", got, "Save the model with transformers as safetensors.")


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
