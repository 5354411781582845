"""One file per format that a fine-tuned model can be written in."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.core.shelf import Entry, NoOptions
from chainrule.exporters.gguf import GGUF
from chainrule.exporters.gguf import Options as GGUFOptions
from chainrule.exporters.onnx import ONNX
from chainrule.exporters.openvino import OpenVINO
from chainrule.exporters.torch_export import TorchExport
from chainrule.exporters.transformers import Transformers

EXPORTERS: Mapping[str, Entry] = {
    "hf": Entry(NoOptions, lambda options: Transformers(), "a plain Hugging Face folder, adapters merged"),
    "onnx": Entry(NoOptions, lambda options: ONNX(), "model.onnx for ONNX Runtime, with a program that runs it"),
    "openvino": Entry(NoOptions, lambda options: OpenVINO(), "OpenVINO's graph, with a program that runs it"),
    "gguf": Entry(GGUFOptions, GGUF, "model.gguf for llama.cpp: Llama-shaped language models"),
    "torch-export": Entry(NoOptions, lambda options: TorchExport(), "model.pt2 for PyTorch alone"),
}
