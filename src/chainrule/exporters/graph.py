"""A model as a graph of tensor operations, with a free number of rows and of tokens: torch.export."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.exporters.base import refuse_others, refused
from chainrule.inference.predict import Predictor
from chainrule.inference.runtimes.graph import MASK
from chainrule.models.accelerate import restore
from chainrule.models.adapters import has_adapters, plain_model
from chainrule.models.crf import Tagger
from chainrule.models.lstm import LSTMTrunk

ROWS, TOKENS = "rows", "tokens"
MOST_ROWS = 2**20
_OUTPUTS = ("logits", "start_logits", "end_logits", "vectors")


class _Texts(nn.Module):
    """A model that takes token ids and a mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return _tensors(self.model(input_ids=input_ids, attention_mask=attention_mask))


class _Pairs(nn.Module):
    """A model that also takes which of two texts a token is of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return _tensors(self.model(input_ids=input_ids, **given))


class _Images(nn.Module):
    """A model that takes images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return _tensors(self.model(pixel_values=pixel_values))


def refuse(predictor: Predictor, wanted: str) -> None:
    """Say why a model is no such graph.

    Raises:
        ModelError: it writes text token by token, holds its base in few bits, or is an LSTM, or has a chain over tags.
    """
    model = plain_model(predictor.forward.model)
    refuse_others(predictor, wanted)
    if predictor.task.writes:
        reason = "one that writes text token by token, which takes more than one graph"
        raise refused(predictor, wanted, reason, "Use --to hf, or --to gguf for Llama-shaped models.")
    if isinstance(getattr(model, "base_model", None), LSTMTrunk):
        reason = "an LSTM over packed rows, which torch.export does not take"
        raise refused(predictor, wanted, reason, "Use it as it is.")
    if isinstance(model, Tagger) and model.crf is not None:
        reason, todo = "a chain over tags, which is no part of the graph", "Train with --set loss=cross-entropy."
        raise refused(predictor, wanted, reason, todo)
    if any(getattr(parameter, "dtype", torch.float32).itemsize < 2 for parameter in model.state_dict().values()):
        raise refused(predictor, wanted, "weights held in few bits", "Merge them first: --to hf.")


def merged(predictor: Predictor) -> Any:
    """A copy of the model on the CPU in float32, without our kernels and with its adapters merged."""
    model = predictor.forward.model
    restore(plain_model(model))
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if has_adapters(model):
        model = model.merge_and_unload()
    model.requires_grad_(False)
    return model


def traced(predictor: Predictor) -> torch.export.ExportedProgram:
    """The graph, in float32: inputs and outputs by transformers' names, the first dimension free, and of texts the
    second up to the longest row that the model was trained on."""
    model, examples = merged(predictor), _examples(predictor)
    if "token_type_ids" in examples:
        wrapped: nn.Module = _Pairs(model)
    else:
        wrapped = _Texts(model) if MASK in examples else _Images(model)
    rows = torch.export.Dim(ROWS, min=1, max=MOST_ROWS)
    tokens = torch.export.Dim(TOKENS, min=2, max=max(3, predictor.artifact.manifest.max_length))
    shapes = {name: {0: rows, 1: tokens} if tensor.ndim == 2 else {0: rows} for name, tensor in examples.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells of its own future, then and when the graph is copied
        return torch.export.export(wrapped, (), kwargs=examples, dynamic_shapes=shapes, strict=False)


def outputs_of(graph: torch.export.ExportedProgram) -> list[str]:
    """The names of what the graph gives, in its order."""
    names = torch.utils._pytree.tree_unflatten(graph.graph_signature.user_outputs, graph.call_spec.out_spec)
    return list(names)


def inputs_of(predictor: Predictor) -> tuple[str, ...]:
    """The names of what the graph takes."""
    return tuple(_examples(predictor))


def _examples(predictor: Predictor) -> dict[str, torch.Tensor]:
    """Two rows of which one is padded, as a model of this kind is given them."""
    tokenizer = predictor.tokenizer
    if predictor.task.sees:
        blank = np.zeros((8, 8, 3), np.uint8)
        return {"pixel_values": tokenizer(images=[blank, blank], return_tensors="pt")["pixel_values"]}
    given = tokenizer(["a b c d", "a b"], padding="longest", return_tensors="pt")
    names = ["input_ids", MASK, *(["token_type_ids"] if "token_type_ids" in tokenizer.model_input_names else [])]
    return {name: given[name] for name in names}


def _tensors(output: Any) -> dict[str, torch.Tensor]:
    """The outputs that tasks read, by name."""
    values: Mapping[str, Any] = dict(output)
    if is_dataclass(output) and not values:
        values = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: values[name].float() for name in _OUTPUTS if values.get(name) is not None}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what converters say of packages that are not installed, and of what will be deprecated."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
