"""Models with two small random layers that train in a second, in every family the loaders must know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    MarianConfig,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
    ViTImageProcessorPil,
)

from chainrule.core.recipe import Structure
from chainrule.models import recurrent
from chainrule.models.save import save_model
from chainrule.testing.data import WORDS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
# Weights of about 1 / √32, so that random features carry what a text says to the top.
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
_TWO_SIDES: dict[str, Any] = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
} | {"d_model": 32, "dropout": 0.0, "init_std": 0.2, "forced_eos_token_id": None}


def tiny_model(folder: Path, family: str = "bert", *, seed: int = 0, positions: int = 64) -> Path:
    """Write a random model and its tokenizer as a Hugging Face folder and return it.

    Args:
        family: "bert", "roberta", "distilbert", "llama" or "qwen2".
        positions: the longest row it takes, in tokens.
    """
    tokenizer = tiny_tokenizer(positions, decoder=family in ("llama", "qwen2"))
    torch.manual_seed(seed)
    model = AutoModel.from_config(_CONFIGS[family](len(tokenizer), positions))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def narrow_model(folder: Path, like: Path, *, width: int = 16, heads: int = 2, layers: int = 1, seed: int = 4) -> Path:
    """Write a random BERT that is narrower than that of `tiny_model`, with its tokenizer, and return the folder."""
    known = BertConfig.from_pretrained(like).to_dict()
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": 32}
    torch.manual_seed(seed)
    AutoModel.from_config(BertConfig(**{**known, **sizes})).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def tiny_lstm(folder: Path, *, seed: int = 0) -> Path:
    """Write a small random LSTM over the words of `chainrule.testing.data` and its tokenizer, and return the folder."""
    options = recurrent.Options(min_count=1, embedding_size=16, hidden_size=32, layers=2)
    tokenizer, options = recurrent.tokenizer_of(options, {"text": [" ".join(WORDS)]})
    kind = "single_label_classification"
    model, _ = recurrent.make_classifier(options, tokenizer, ["negative", "positive"], kind, Structure(), seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer, max_length=64, base="lstm")
    return folder


def tiny_language_model(vocabulary: int = 96, *, tied: bool = True, positions: int = 64, seed: int = 0) -> Any:
    """A random Llama with two layers and a head over the vocabulary."""
    config = _llama(vocabulary, positions)
    config.tie_word_embeddings = tied
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def tiny_chat_model(
    folder: Path, *, tied: bool = True, positions: int = 64, template: str | None = None, seed: int = 0
) -> Path:
    """Write a random causal language model and its tokenizer as a Hugging Face folder and return it.

    Args:
        tied: whether its output layer is its table of embeddings.
        template: the tokenizer's chat template; None for none.
    """
    tokenizer = tiny_tokenizer(positions, decoder=True)
    tokenizer.chat_template = template
    folder.mkdir(parents=True, exist_ok=True)
    tiny_language_model(len(tokenizer), tied=tied, positions=positions, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_byte_chat_model(folder: Path, *, positions: int = 64, seed: int = 0) -> Path:
    """Write a random causal language model over byte pairs, as chat models have them, and return its folder."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=positions, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    tiny_language_model(len(tokenizer), positions=positions, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_encoder_decoder(folder: Path, family: str = "t5", *, positions: int = 64, seed: int = 0) -> Path:
    """Write a random encoder-decoder and its tokenizer as a Hugging Face folder and return it.

    Args:
        family: "t5", "bart" or "marian".
        positions: the longest text it reads or writes, in tokens; T5 has no limit of its own.
    """
    tokenizer = tiny_tokenizer(positions, decoder=True)
    tokenizer.pad_token = "[PAD]"
    end = [("[SEP]", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=end)
    torch.manual_seed(seed)
    ends = {"pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    if family == "t5":
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
        model = AutoModelForSeq2SeqLM.from_config(
            T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes, **ends)
        )
    else:
        starts = {"bos_token_id": 2, "decoder_start_token_id": 0 if family == "marian" else tokenizer.eos_token_id}
        config = (MarianConfig if family == "marian" else BartConfig)(
            vocab_size=len(tokenizer), max_position_embeddings=positions, **_TWO_SIDES, **starts, **ends
        )
        model = AutoModelForSeq2SeqLM.from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_multilingual_model(folder: Path, *, first: bool = False, positions: int = 64, seed: int = 0) -> Path:
    """Write a random mBART and its tokenizer as a Hugging Face folder and return it.

    Args:
        first: targets begin with the mark of their language, as mBART-50 has it; else the decoder begins with it.
    """
    kind = MBart50Tokenizer if first else MBartTokenizer
    codes = [token for token in kind().all_special_tokens if "_" in token]
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(f"▁{word}" for word in (*WORDS, "a")),
        "▁",
        *_LETTERS,
        *codes,
        "<mask>",
    ]
    vocabulary = [(piece, 0.0 if piece[0] == "<" else -1.0 - len(piece) / 100) for piece in dict.fromkeys(pieces)]
    tokenizer = kind(vocab=vocabulary, src_lang="en_XX", model_max_length=positions)
    torch.manual_seed(seed)
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2 if first else None}
    config = MBartConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **_TWO_SIDES, **ends)
    folder.mkdir(parents=True, exist_ok=True)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_vision_model(folder: Path, *, side: int = 16, seed: int = 0) -> Path:
    """Write a random vision transformer and its image processor as a Hugging Face folder and return it."""
    torch.manual_seed(seed)
    config = ViTConfig(image_size=side, patch_size=4, num_channels=3, **_SIZES)
    AutoModel.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def tiny_tokenizer(positions: int, *, decoder: bool = False) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over the words of `chainrule.testing.data`, letters and common Chinese characters."""
    chinese = tuple(chr(code) for code in range(0x4E00, 0x4E00 + 64)) + tuple("我你他好不很喜欢讨厌电影酒店的了是")
    pieces = (*SPECIAL, *dict.fromkeys((*WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *chinese)))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    if not decoder:
        ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    names: dict[str, Any] = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if not decoder:
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    inputs = ["input_ids", "attention_mask"] if decoder else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=positions, model_input_names=inputs, **names
    )


def _bert(vocabulary: int, positions: int) -> Any:
    return BertConfig(vocab_size=vocabulary, max_position_embeddings=positions, pad_token_id=0, **_SIZES)


def _roberta(vocabulary: int, positions: int) -> Any:
    return RobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=positions + 2, type_vocab_size=2, pad_token_id=0, **_SIZES
    )


def _distilbert(vocabulary: int, positions: int) -> Any:
    return DistilBertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        initializer_range=0.2,
    )


def _llama(vocabulary: int, positions: int) -> Any:
    return LlamaConfig(vocab_size=vocabulary, max_position_embeddings=positions, num_key_value_heads=2, **_SIZES)


def _qwen2(vocabulary: int, positions: int) -> Any:
    rows = vocabulary + 1  # transformers' tokenizer of this family adds a token for padding
    return Qwen2Config(vocab_size=rows, max_position_embeddings=positions, num_key_value_heads=1, **_SIZES)


_CONFIGS: dict[str, Callable[[int, int], Any]] = {
    "bert": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "llama": _llama,
    "qwen2": _qwen2,
}
