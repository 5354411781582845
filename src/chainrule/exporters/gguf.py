"""GGUF, which llama.cpp and what builds on it read: Llama-shaped language models.

The layout is llama.cpp's: names of tensors from its own table (package `gguf`), and the rows of query and key weights
of Llama in the order that its rotary positions take (pairs of neighbours instead of two halves).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForCausalLM

from chainrule.core.recipe import Section
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import ROUNDED, SAME
from chainrule.exporters.base import refuse_others, refused
from chainrule.exporters.graph import merged, quiet
from chainrule.inference.predict import Predictor
from chainrule.models.adapters import plain_model
from chainrule.system.extras import require

MODEL = "model.gguf"
_ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2"}
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # kinds of tokens
# llama.cpp's names for what is done before the byte pairs, by a mark of it in tokenizer.json
_PRE_TOKENIZERS = {'"individual_digits":true': "smollm", "\\p{N}|": "qwen2", "\\p{N}{1,3}": "llama-bpe"}


class Options(Section):
    """How a model is written in GGUF.

    Attributes:
        numbers: of the matrices: "f32", "f16", or "q8_0" (eight bits in blocks of 32, with a scale each). Norms are
            float32.
    """

    numbers: str = Field(default="f16", pattern="^(f32|f16|q8_0)$")


class GGUF:
    """One file, model.gguf: weights, vocabulary, chat template and the tokens that end a reply."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def refuse(self, predictor: Predictor) -> None:
        refuse_others(predictor, "gguf")
        kind = predictor.forward.model.config.model_type
        if predictor.task.head != "language-model" or kind not in _ARCHITECTURES:
            reason = f"a model of the kind {kind} for {predictor.task.name}"
            todo = f"GGUF is for language models of the kinds {', '.join(_ARCHITECTURES)}; use --to hf."
            raise refused(predictor, "gguf", reason, todo)
        if json.loads(predictor.tokenizer.backend_tokenizer.to_str())["model"]["type"] != "BPE":
            raise refused(predictor, "gguf", "a tokenizer other than one of byte pairs", "Use --to hf.")

    def write(self, predictor: Predictor, folder: Path) -> Written:
        library = require("gguf", extra="gguf", purpose="Export to GGUF")
        model = merged(predictor)
        config = plain_model(model).config
        writer = library.GGUFWriter(folder / MODEL, config.model_type)
        _write_config(library, writer, config, self.options.numbers)
        _write_vocabulary(writer, predictor.tokenizer, config)
        _write_weights(library, writer, model, config, self.options.numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

        def loaded() -> Any:
            with quiet():
                return AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32).eval()

        bound = SAME if self.options.numbers == "f32" else ROUNDED
        return Written("none", ("llama.cpp", "transformers (gguf_file)"), MODEL, loaded, bound)


def _write_config(library: Any, writer: Any, config: Any, numbers: str) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_name("chainrule")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(library.LlamaFileType["ALL_F32" if numbers == "f32" else f"MOSTLY_{numbers.upper()}"])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)


def _write_vocabulary(writer: Any, tokenizer: Any, config: Any) -> None:
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {entry["id"]: entry["special"] for entry in stored["added_tokens"]}
    by_id = {place: token for token, place in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for place in range(config.vocab_size):
        tokens.append(by_id.get(place, f"[unused {place}]"))
        added = _CONTROL if special.get(place) else _USER
        kinds.append(_UNUSED if place not in by_id else added if place in special else _NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(stored))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in stored["model"]["merges"]])
    ends = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for name, place in (ends | {"unk": tokenizer.unk_token_id}).items():
        if place is not None:
            getattr(writer, f"add_{name}_token_id")(place)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(stored: Any) -> str:
    told = json.dumps(stored["pre_tokenizer"], separators=(",", ":"), ensure_ascii=False).replace("\\\\", "\\")
    return next((name for mark, name in _PRE_TOKENIZERS.items() if mark in told), "default")


def _write_weights(library: Any, writer: Any, model: Any, config: Any, numbers: str) -> None:
    kind = getattr(library.MODEL_ARCH, _ARCHITECTURES[config.model_type])
    names = library.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    matrix = library.GGMLQuantizationType[numbers.upper()]
    for name, tensor in model.state_dict().items():
        if name.startswith("lm_head.") and tied:
            continue
        values = tensor.float().numpy()
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = in_pairs(values, heads)
        chosen = matrix if values.ndim > 1 and values.shape[-1] % 32 == 0 else library.GGMLQuantizationType.F32
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(found, library.quants.quantize(values, chosen), raw_dtype=chosen)


def in_pairs(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads · d, …) of each head from two halves to pairs: 0, d/2, 1, d/2 + 1, …"""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))
