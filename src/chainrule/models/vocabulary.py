"""New tokens: into a tokenizer, and into a model's embeddings as the mean of the pieces they had before."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken

from chainrule.errors import Problem, RecipeError, Where

_FIELD = "structure.add_tokens"


def extend_tokenizer(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Let a tokenizer read each of `tokens` as one token.

    A word of a script that parts words by spaces is found as a whole word only; Chinese and marks such as <b> anywhere.

    Raises:
        RecipeError: some of them are empty, named twice, or one piece already.
    """
    problems = [problem for place, token in enumerate(tokens) if (problem := _problem(tokenizer, tokens, place))]
    if problems:
        raise RecipeError("These tokens cannot be added.", problems)
    tokenizer.add_tokens([AddedToken(token, single_word=_is_word(token), normalized=True) for token in tokens])


def pieces_of(before: Any, after: Any, tokens: Sequence[str]) -> dict[int, list[int]]:
    """The ids of new tokens, and those of the pieces that each of them was before.

    Args:
        before, after: the tokenizer without and with the tokens.
    """
    return {after.convert_tokens_to_ids(token): _pieces(before, token) for token in tokens}


def extend_embeddings(model: Any, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give a model embeddings for new ids, each the mean of its pieces' embeddings; the output layer alike.

    What is tied stays tied. Other ids keep what they have.
    """
    rows = max(pieces) + 1
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    with torch.no_grad():
        for table in {id(parameter): parameter for layer in layers for parameter in layer.parameters()}.values():
            for new, old in pieces.items():
                table[new] = table[list(old)].mean(0)


def _problem(tokenizer: Any, tokens: Sequence[str], place: int) -> Problem | None:
    token, where = tokens[place], Where(field=f"{_FIELD}.{place}")
    if not token.strip() or token != token.strip():
        return Problem("a text without space at its ends", repr(token), "Remove the space, or the token.", where)
    if token in tokens[:place]:
        return Problem("each token once", f"{token!r} again", "Remove it.", where)
    pieces = _pieces(tokenizer, token)
    if not pieces:
        return Problem("a token that the tokenizer does not drop", repr(token), "Remove it.", where)
    if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:
        got = f"{token!r}, which is one piece already"
        return Problem("a token that the vocabulary lacks", got, "Remove it.", where)
    return None


def _pieces(tokenizer: Any, token: str) -> list[int]:
    return list(tokenizer(token, add_special_tokens=False)["input_ids"])


def _is_word(token: str) -> bool:
    """Whether it is a word, and not of a script that is written without spaces, such as Chinese."""
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in token)
    return not wide and (token[0].isalnum() or token[-1].isalnum())
