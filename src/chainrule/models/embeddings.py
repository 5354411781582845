"""The table of embeddings of a pretrained model, by itself: what another model may begin with."""

from __future__ import annotations

import torch
from safetensors import safe_open
from transformers import AutoModel

from chainrule.models.folder import refused, stored_shapes, weight_files
from chainrule.models.place import fetch_weights, find, loading, read_config


def read_embeddings(name: str) -> torch.Tensor:
    """The input embeddings of a model, (vocabulary, size) float32; nothing else of it is read.

    Args:
        name: a catalog name, a folder or a hub name.

    Raises:
        ModelError: it cannot be found, its files are damaged, or it has no such table.
    """
    place = find(name)
    config = read_config(place)
    with loading(place), torch.device("meta"):
        outline = AutoModel.from_config(config, trust_remote_code=False)
    table = outline.get_input_embeddings()
    key = next((key for key, tensor in outline.named_parameters() if tensor is getattr(table, "weight", None)), None)
    fetch_weights(place)
    files = weight_files(place.folder, name)
    shapes = stored_shapes(files, name)
    stored = [found for found in shapes if key is not None and (found == key or found.endswith(f".{key}"))]
    if not isinstance(table, torch.nn.Embedding) or not stored:
        todo = "Name a model that reads tokens."
        raise refused(name, "a table of embeddings, one for each token", "none", todo)
    wanted = min(stored, key=len)
    file = next(file for file in files if wanted in stored_shapes([file], name))
    with safe_open(file, framework="pt") as weights:
        found: torch.Tensor = weights.get_tensor(wanted)
    return found.float()
