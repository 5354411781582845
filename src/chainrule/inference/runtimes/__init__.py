"""What runs a model whose weights do not lie in safetensors: a shelf by the names that a manifest gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import AutoConfig

from chainrule.inference.runtimes import onnx, openvino
from chainrule.inference.runtimes.decoder import Decoder, load_decoder
from chainrule.inference.runtimes.graph import Graph, Runner
from chainrule.models.place import find, loading

_RUNTIMES: Mapping[str, Callable[[Path, str], Runner]] = {"onnx": onnx.load, "openvino": openvino.load}
FILES: Mapping[str, tuple[str, ...]] = {"onnx": onnx.FILES, "openvino": openvino.FILES}


def load_graph(folder: Path, runtime: str, precision: str, head: str) -> Graph | Decoder:
    """The graph that lies in an artifact folder, as something to call like a model.

    Args:
        precision: of the arithmetic, "float32" or "bfloat16", where the engine lets one choose and the graph does not
            say.
        head: of the task: a language model's graph keeps what it has read.

    Raises:
        ModelError: a file is missing or damaged.
        MissingExtraError: the engine is not installed.
    """
    if head == "language-model":
        return load_decoder(folder, precision)
    place = find(str(folder))
    with loading(place):
        config = AutoConfig.from_pretrained(place.path, **place.options)
    return Graph(config, _RUNTIMES[runtime](folder, precision))
