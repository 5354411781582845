"""How many bytes the weights of a model take, before it is loaded and after."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch

from chainrule.core.artifact import ROWS, Artifact
from chainrule.inference.ensemble import members_of
from chainrule.inference.predict import Predictor, base_name
from chainrule.models.adapters import ADAPTERS
from chainrule.models.folder import stored_shapes, weight_files
from chainrule.models.place import fetch_weights, find
from chainrule.models.save import weights_file

_TEXTS = (".json", ".txt", ".xml", ".md", ".jinja", ".html")  # beside the weights of another engine


def stored_bytes(artifact: Artifact) -> int:
    """Bytes that an artifact's weights will take once they are loaded, those under its adapters among them.

    They are loaded as float32, whatever they were saved as. Of what is then held in fewer bits nothing is counted.

    Raises:
        ModelError: the model under the adapters, or a member of an ensemble, cannot be found, or a file is damaged.
    """
    runtime, path = artifact.manifest.runtime, artifact.path
    if runtime == "ensemble":
        return sum(stored_bytes(member) for member in members_of(artifact)[0])
    if runtime != "torch":
        files = (file for file in path.iterdir() if file.suffix not in _TEXTS and file.name != ROWS)
        return sum(file.stat().st_size for file in files if file.is_file())
    weights = [weights_file(path)]
    if (path / ADAPTERS).is_file() and artifact.manifest.recipe.get("strategy", {}).get("name") != "qlora":
        base = find(base_name(artifact))
        fetch_weights(base)
        weights += weight_files(base.folder, base.name)
    return sum(4 * prod(shape) for shape in stored_shapes(weights, str(path)).values())


def held_bytes(predictor: Predictor) -> int:
    """Bytes of the weights in memory; of another engine's graph, of its files."""
    return tensor_bytes(predictor.forward.model) or stored_bytes(predictor.artifact)


def tensor_bytes(model: Any) -> int:
    """Bytes of a model's tensors, with copies that are kept of them; 0 for another engine's graph."""
    sizes: dict[int, int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        for kept in vars(parameter).values():  # its copy in bfloat16, and the like
            if isinstance(kept, torch.Tensor):
                yield kept
