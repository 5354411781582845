"""A smaller vocabulary: half of a small encoder is its table of word embeddings, most of which a task never reads.

What stays: the tokens of the rows, those that they are built of, the special ones, and every single character. Texts of
which all tokens stay are cut into the same tokens as before, whatever the kind of tokenizer: the longest piece that
WordPiece takes is still there, every merge of byte pairs that was made is still made, and the likeliest path through a
unigram model is still the likeliest. Other texts are cut into smaller pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from tokenizers import Tokenizer

from chainrule.compressors.base import Given, refused
from chainrule.core.recipe import Section
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.base import refuse_others
from chainrule.exporters.graph import merged
from chainrule.inference.predict import Predictor
from chainrule.models.folder import WEIGHTS
from chainrule.models.save import save_model

Stored = dict[str, Any]  # tokenizer.json


class Options(Section):
    """Which tokens stay.

    Attributes:
        least: how often a token must stand in the rows to stay.
    """

    least: int = Field(default=1, ge=1)


class Vocabulary:
    """Takes a model that reads text and does not write it."""

    faster, exact = False, True

    def __init__(self, options: Options) -> None:
        self.options = options

    def refuse(self, predictor: Predictor) -> None:
        refuse_others(predictor, "a smaller vocabulary")
        task = predictor.task
        if task.writes or task.sees:
            reason = "one that writes text, and may need any token" if task.writes else "one of images"
            raise refused(predictor, reason, "Keep its vocabulary as it is.")
        kind = json.loads(predictor.tokenizer.backend_tokenizer.to_str())["model"]["type"]
        if kind not in _CUTS:
            raise refused(predictor, f"a tokenizer of the kind {kind}", f"It must be one of {', '.join(_CUTS)}.")

    def write(self, predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
        model, tokenizer = merged(predictor), predictor.tokenizer
        rows = [given.rows, *([given.train] if given.train else [])]
        ids = torch.cat([torch.from_numpy(encoded.ids).long() for encoded in rows])
        counts = torch.bincount(ids, minlength=len(tokenizer))
        seen = set(torch.nonzero(counts >= self.options.least).flatten().tolist())
        stored: Stored = json.loads(tokenizer.backend_tokenizer.to_str())
        kept = sorted(tokens_to_keep(stored, seen))
        if len(kept) == len(tokenizer):
            raise refused(predictor, f"one whose {len(kept):,} tokens are all needed", "Keep it as it is.")
        told = f"{len(kept):,} of {len(tokenizer):,} tokens stay"
        given.display.say(f"Vocabulary: {told}, {len(seen):,} of them from {sum(map(len, rows)):,} rows.")
        smaller = type(tokenizer)(
            tokenizer_object=Tokenizer.from_str(json.dumps(cut(stored, kept))),
            **{name: value for name, value in tokenizer.init_kwargs.items() if name != "tokenizer_file"},
        )
        table = model.get_input_embeddings()
        numbers = table.weight[torch.tensor(kept)].clone()
        model.resize_token_embeddings(len(kept), mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(numbers)
        model.config.pad_token_id = smaller.pad_token_id
        manifest = predictor.artifact.manifest
        loads_in = save_model(folder, model, smaller, max_length=manifest.max_length, base=manifest.base_model)
        return Written("torch", loads_in, WEIGHTS, bound=bound)


def tokens_to_keep(stored: Stored, seen: Iterable[int]) -> set[int]:
    """The numbers of the tokens that stay.

    Args:
        stored: tokenizer.json.
        seen: the numbers of those that the rows have.
    """
    vocabulary = _vocabulary(stored["model"])
    kept = {*seen, *(entry["id"] for entry in stored["added_tokens"])}
    prefix = stored["model"].get("continuing_subword_prefix") or ""
    unknown = stored["model"].get("unk_token", stored["model"].get("unk_id"))
    kept |= {vocabulary[unknown]} if isinstance(unknown, str) else {unknown} if isinstance(unknown, int) else set()
    kept |= {number for token, number in vocabulary.items() if len(token.removeprefix(prefix)) <= 1}
    if stored["model"]["type"] == "BPE":
        kept |= {number for token, number in vocabulary.items() if token.startswith("<0x")}
        parents = {left + right: (left, right) for left, right in _merges(stored["model"])}
        waiting = [token for token, number in vocabulary.items() if number in kept]
        while waiting:
            for part in parents.get(waiting.pop(), ()):
                if vocabulary[part] not in kept:
                    kept.add(vocabulary[part])
                    waiting.append(part)
    return kept


def cut(stored: Stored, kept: list[int]) -> Stored:
    """tokenizer.json with these tokens alone, numbered in their order."""
    number = {old: new for new, old in enumerate(kept)}
    changed = {**stored, "model": _CUTS[stored["model"]["type"]](stored["model"], number)}
    changed["added_tokens"] = [{**entry, "id": number[entry["id"]]} for entry in stored["added_tokens"]]
    if stored.get("post_processor"):
        changed["post_processor"] = _renumbered(stored["post_processor"], number)
    if (stored.get("padding") or {}).get("pad_id") is not None:
        changed["padding"] = {**stored["padding"], "pad_id": number[stored["padding"]["pad_id"]]}
    return changed


def _renumbered(part: Any, number: Mapping[int, int]) -> Any:
    """What stands after the tokens, with new numbers of special tokens: `ids`, and pairs of a token and its number."""
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], number[part[1]]]
        return [_renumbered(item, number) for item in part]
    if isinstance(part, dict):
        return {
            key: [number[old] for old in item] if key == "ids" else _renumbered(item, number)
            for key, item in part.items()
        }
    return part


def _vocabulary(model: Stored) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _merges(model: Stored) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _cut_wordpiece(model: Stored, number: Mapping[int, int]) -> Stored:
    return {**model, "vocab": {token: number[old] for token, old in model["vocab"].items() if old in number}}


def _cut_bpe(model: Stored, number: Mapping[int, int]) -> Stored:
    vocabulary = {token: number[old] for token, old in model["vocab"].items() if old in number}
    merges = [[left, right] for left, right in _merges(model) if {left, right, left + right} <= vocabulary.keys()]
    return {**model, "vocab": vocabulary, "merges": merges}


def _cut_unigram(model: Stored, number: Mapping[int, int]) -> Stored:
    vocabulary = [entry for old, entry in enumerate(model["vocab"]) if old in number]
    unknown = model.get("unk_id")
    return {**model, "vocab": vocabulary, "unk_id": None if unknown is None else number[unknown]}


_CUTS = {"WordPiece": _cut_wordpiece, "BPE": _cut_bpe, "Unigram": _cut_unigram, "WordLevel": _cut_wordpiece}
