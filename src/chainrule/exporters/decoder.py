"""A language model as one graph of OpenVINO's that keeps the keys and values of what it has read as state.

The form is the one that OpenVINO's own tools give such models: `input_ids`, `attention_mask`, `position_ids` and
`beam_idx` in, `logits` out; here `last_hidden_state`, too, where Chainrule cuts it (`inference/runtimes/decoder`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

from chainrule.errors import ModelError
from chainrule.evaluation.handover import Written
from chainrule.exporters.base import refuse_others, refused
from chainrule.exporters.graph import merged, quiet
from chainrule.inference.predict import Predictor
from chainrule.inference.runtimes.decoder import BEAMS, HIDDEN, LOGITS
from chainrule.inference.runtimes.openvino import MODEL, WEIGHTS
from chainrule.models.adapters import plain_model, virtual_tokens
from chainrule.system.extras import require
from chainrule.system.files import write_text
from chainrule.tasks.conversation import ends_of, render

_INPUTS = ("input_ids", "attention_mask", "position_ids")
_ROWS, _READ, _BEFORE = 2, 3, 4  # of the example: none is one of the sizes that torch.export takes for constants
_MARK = "what is asked"
_PURPOSE = "A language model as OpenVINO's graph"

Layers = list[tuple[torch.Tensor, torch.Tensor]]


class _Past:
    """What a model's layers are given for a cache: keys and values that come in, and that go out again."""

    is_compileable = False

    def __init__(self, before: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.before, self.after = before, list[tuple[torch.Tensor, torch.Tensor]]()

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *more: Any, **others: Any) -> Any:
        old_keys, old_values = self.before[layer]
        self.after.append((torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)))
        return self.after[-1]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.before[layer][0].shape[2]


class _Step(nn.Module):
    """A language model that reads further tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, past: Layers
    ) -> tuple[torch.Tensor, torch.Tensor, Layers]:
        whole, count = attention_mask.shape[1], input_ids.shape[1]
        own = torch.arange(count) + (whole - count)
        seen = (torch.arange(whole)[None] <= own[:, None])[None, None] & attention_mask[:, None, None].bool()
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        held = _Past(past)
        found = self.model.base_model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=held, use_cache=True
        )
        states = found.last_hidden_state
        return self.model.get_output_embeddings()(states), states, held.after


def refuse_decoder(predictor: Predictor, wanted: str) -> None:
    """Say why a language model is no such graph.

    Raises:
        ModelError: it is a graph already, learned preferences, has a trained prompt, holds weights in few bits, looks
            back through a window, or changes its logits.
    """
    refuse_others(predictor, wanted)
    model = predictor.forward.model
    config = plain_model(model).config.get_text_config()
    hf = "Use --to hf."
    if predictor.task.target.kind == "preference":
        reason = "one that has learned preferences, beside a model that is no longer there"
        raise refused(predictor, wanted, reason, hf)
    if virtual_tokens(model):
        raise refused(predictor, wanted, "a trained prompt before every row", "Use it as it is.")
    if any(tensor.dtype.itemsize < 2 for tensor in model.state_dict().values()):
        raise refused(predictor, wanted, "weights held in few bits", "Merge them first: chainrule export --to hf.")
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if any(kind != "full_attention" for kind in kinds) or (window and not kinds):
        raise refused(predictor, wanted, "layers that do not see all that was read", hf)
    for name, plain in (("logit_scale", 1.0), ("logits_scaling", 1.0), ("final_logit_softcapping", None)):
        if getattr(config, name, None) not in (None, plain):
            raise refused(predictor, wanted, f"logits that are changed ({name})", hf)


def converted_decoder(predictor: Predictor) -> Any:
    """The graph, in float32.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ModelError: torch.export or OpenVINO do not take this model.
    """
    library = require("openvino", extra="openvino", purpose=_PURPOSE)
    model = merged(predictor)
    try:
        graph = _traced(model)
        with quiet():
            made = library.convert_model(graph)
    except Exception as error:  # what torch.export and OpenVINO raise has no common parent
        raise _not_taken(predictor, error) from error
    layers = (len(made.inputs) - len(_INPUTS)) // 2
    kept = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = [*_INPUTS, *(f"past_key_values.{name}" for name in kept)]
    outputs = [LOGITS, HIDDEN, *(f"present.{name}" for name in kept)]
    for ports, names in ((made.inputs, inputs), (made.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    _with_state(library, made, kept)
    return made


def write_decoder(predictor: Predictor, graph: Any, folder: Path) -> Written:
    """Write a graph, how its model ends a text, and a program that runs it."""
    require("openvino", extra="openvino", purpose=_PURPOSE).save_model(graph, folder / MODEL, compress_to_fp16=False)
    model, tokenizer = plain_model(predictor.forward.model), predictor.tokenizer
    model.generation_config.save_pretrained(folder)
    asked = render(tokenizer, [{"role": "user", "content": _MARK}]).text if tokenizer.chat_template else _MARK
    before, _, after = asked.partition(_MARK)
    loader = PackageLoader("chainrule.exporters", "templates")
    environment = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["python"] = repr
    ends = ends_of(model, tokenizer)
    text = environment.get_template("writer.py.txt").render(file=MODEL, before=before, after=after, ends=ends)
    write_text(folder / "example.py", text)
    return Written("openvino", ("openvino",), WEIGHTS)


def _traced(model: Any) -> torch.export.ExportedProgram:
    ids = torch.ones(_ROWS, _READ, dtype=torch.long)
    with torch.no_grad():
        layers = model.base_model(input_ids=ids, use_cache=True).past_key_values.layers
        sizes = [(layer.keys.shape, layer.values.shape) for layer in layers]
        past = [tuple(torch.zeros(_ROWS, size[1], _BEFORE, size[3]) for size in pair) for pair in sizes]
        places = torch.arange(_BEFORE, _BEFORE + _READ).expand(_ROWS, _READ).clone()
        mask = torch.ones(_ROWS, _BEFORE + _READ, dtype=torch.long)
        examples = dict(zip(_INPUTS, (ids, mask, places), strict=True))
        free = torch.export.Dim.AUTO
        shapes: dict[str, Any] = {name: {0: free, 1: free} for name in examples}
        shapes["past"] = [({0: free, 2: free}, {0: free, 2: free}) for _ in past]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells of its own future
            given = examples | {"past": past}
            return torch.export.export(_Step(model), (), kwargs=given, dynamic_shapes=shapes, strict=False)


def _with_state(library: Any, graph: Any, kept: Sequence[str]) -> None:
    """Make keys and values state of the graph, in the order of rows that `beam_idx` says."""
    nodes = require("openvino.opset13", extra="openvino", purpose=_PURPOSE)
    passes = require("openvino._offline_transformations", extra="openvino", purpose=_PURPOSE)
    order = nodes.parameter(library.PartialShape([-1]), dtype=library.Type.i32, name=BEAMS)
    order.output(0).get_tensor().add_names({BEAMS})
    graph.add_parameters([order])
    for name in kept:
        port = graph.input(f"past_key_values.{name}")
        users = port.get_target_inputs()
        ordered = nodes.gather(port, order, nodes.constant(0)).output(0)
        for user in users:
            user.replace_source_output(ordered)
    graph.validate_nodes_and_infer_types()
    passes.apply_make_stateful_transformation(graph, {f"past_key_values.{name}": f"present.{name}" for name in kept})
    sizes = nodes.shape_of(graph.input("input_ids"), output_type="i64")
    rows = nodes.gather(sizes, nodes.constant([0]), nodes.constant(0))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":  # at first nothing has been read
            rest = [size.min_length for size in node.get_output_partial_shape(0)][1:]
            shape = nodes.concat([rows, nodes.constant(np.array(rest, np.int64))], axis=0)
            zero = nodes.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([nodes.broadcast(zero, shape)])
    graph.validate_nodes_and_infer_types()


def _not_taken(predictor: Predictor, error: Exception) -> ModelError:
    kind = plain_model(predictor.forward.model).config.model_type
    told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return refused(predictor, "openvino", f"a {kind} that could not be converted ({told})", "Use --to hf.")
