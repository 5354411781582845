"""A tokenizer made from texts: words, characters or bytes, the most frequent of them, with the tokenizers library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from chainrule.core.scripts import UNSPACED

Unit = Literal["word", "character", "byte"]

PAD, UNKNOWN, END = SPECIAL = ("[PAD]", "[UNK]", "[SEP]")
INPUTS = ("input_ids", "attention_mask")  # no types: an LSTM knows one text from the other by what ends it

_UNSPACED = re.compile(f"[{UNSPACED}]")
_LETTER = re.compile(r"[^\W\d_]")


def natural_unit(texts: Iterable[str]) -> Unit:
    """Words, or characters where most letters are of a script that is written without spaces."""
    letters = unspaced = 0
    for text in texts:
        letters += len(_LETTER.findall(text))
        unspaced += len(_UNSPACED.findall(text))
    return "character" if 2 * unspaced > letters else "word"


def make_tokenizer(texts: Iterable[str], unit: Unit, *, size: int, min_count: int, lowercase: bool) -> Any:
    """A tokenizer whose vocabulary is what the texts hold most often.

    A row ends in [SEP], and so does the first text of a pair. Of as frequent entries the one that sorts first is kept.

    Args:
        unit: "word" (words, numbers and single marks of punctuation; each Chinese character is a word), "character"
            (white space is one space), or "byte" (all 256, whatever the texts hold).
        size: entries at most, the special ones among them.
        min_count: entries that are met less often are unknown.
        lowercase: read upper and lower case alike.
    """
    fixed = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())) if unit == "byte" else SPECIAL
    inner = Tokenizer(models.WordLevel({token: place for place, token in enumerate(fixed)}, unk_token=UNKNOWN))
    inner.normalizer = _normalizer(unit, lowercase)
    inner.pre_tokenizer = _pre_tokenizer(unit)
    if unit != "byte":
        trainer = trainers.WordLevelTrainer(
            vocab_size=size, min_frequency=min_count, special_tokens=list(SPECIAL), show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
    if unit != "word":
        inner.decoder = decoders.Fuse() if unit == "character" else decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, SPECIAL.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        sep_token=END,
        model_input_names=list(INPUTS),
    )


def without_types(tokenizer: Any) -> Any:
    """A pretrained model's tokenizer for a model that is given tokens alone, padded on the right."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_input_names=list(INPUTS),
        model_max_length=tokenizer.model_max_length,
        padding_side="right",
        **tokenizer.special_tokens_map,
    )


def _normalizer(unit: Unit, lowercase: bool) -> Any:
    steps: list[Any] = [normalizers.NFC()]
    if unit == "word":
        steps.append(normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False))
    elif lowercase:
        steps.append(normalizers.Lowercase())
    if unit == "character":
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def _pre_tokenizer(unit: Unit) -> Any:
    if unit == "word":
        return pre_tokenizers.BertPreTokenizer()
    one = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if unit == "character":
        return one
    return pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), one])
