"""A language model as OpenVINO's graph that keeps its keys and values, behind what transformers' models are asked.

The graph has the form that OpenVINO's own tools give such models: it takes the ids of further tokens, a mask and
positions of all that was read, and `beam_idx`, which row of the step before each row goes on from; what was read is
state inside. Here it is cut at its last hidden states, since most of them are never turned into logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from chainrule.errors import ModelError
from chainrule.inference.runtimes.graph import unreadable
from chainrule.inference.runtimes.openvino import MODEL, read, settings_of
from chainrule.models.place import find, loading
from chainrule.system.extras import require

HIDDEN, LOGITS, BEAMS = "last_hidden_state", "logits", "beam_idx"
GENERATION = "generation_config.json"


class Parts(NamedTuple):
    """Both halves of a graph, ready to run.

    Attributes:
        trunk: from tokens to hidden states, with its state.
        head: from hidden states (n, d) to logits (n, vocabulary).
    """

    trunk: Any
    head: Any


class Memory:
    """What a graph has read of some rows: its state, and how much of it there is."""

    is_compileable = False

    def __init__(self, trunk: Any) -> None:
        self._request = trunk.create_infer_request()
        self._length = 0
        self._order: np.ndarray | None = None

    def get_seq_length(self) -> int:
        """How many tokens were read, padding included."""
        return self._length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """From now on row i goes on from what row beam_idx[i] has read."""
        order = beam_idx.cpu().numpy().astype(np.int32)
        self._order = order if self._order is None else self._order[order]

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None, places: torch.Tensor | None) -> torch.Tensor:
        """Read further tokens (b, t), and return their hidden states (b, t, d).

        Args:
            mask: (b, tokens read before + t); None where there is no padding.
            places: (b, t) positions; None for those that follow.
        """
        rows, count = ids.shape
        whole = self._length + count
        if mask is None:
            mask = ids.new_ones(rows, whole)
        if places is None:
            places = torch.arange(self._length, whole).expand(rows, count)
        order = np.arange(rows, dtype=np.int32) if self._order is None else self._order
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        arrays = {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in given.items()}
        found = self._request.infer({**arrays, BEAMS: order})
        self._length, self._order = whole, None
        return torch.from_numpy(found[HIDDEN])


class Decoder(GenerationMixin, torch.nn.Module):  # type: ignore[misc]
    """Scores texts and writes them. Each text that is written has a state of its own."""

    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(self, config: Any, generation_config: Any, parts: Parts) -> None:
        super().__init__()
        self.config, self.generation_config = config, generation_config
        self.parts = parts

    @property
    def device(self) -> torch.device:
        """Of what is taken and given."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of what is given."""
        return torch.float32

    @property
    def base_model(self) -> Callable[..., BaseModelOutput]:
        """The model below its head, reading rows from their beginning."""
        return self._hidden

    def get_output_embeddings(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The head: hidden states (…, d) to logits (…, vocabulary)."""
        return self._logits

    def get_experts_implementation(self) -> Mapping[str, str]:
        """What transformers asks of a model before it writes."""
        return {}

    def is_remote_code(self) -> bool:
        """Never."""
        return False

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Memory | None = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """The logits of tokens (b, t) that follow what is in memory.

        Args:
            logits_to_keep: of so many last tokens; 0 for all.
        """
        memory = past_key_values or Memory(self.parts.trunk)
        states = memory.read(input_ids, attention_mask, position_ids)
        return CausalLMOutputWithPast(logits=self._logits(states[:, -logits_to_keep:]), past_key_values=memory)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *more: Any) -> None:
        model_kwargs["past_key_values"] = Memory(self.parts.trunk)

    def _hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **more: Any,
    ) -> BaseModelOutput:
        states = Memory(self.parts.trunk).read(input_ids, attention_mask, position_ids)
        return BaseModelOutput(last_hidden_state=states)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        flat = np.ascontiguousarray(states.reshape(-1, states.shape[-1]).cpu().float().numpy())
        return torch.from_numpy(self.parts.head(flat)[0]).view(*states.shape[:-1], -1)


def load_decoder(folder: Path, precision: str) -> Decoder:
    """The language model in an artifact folder of the runtime openvino.

    Args:
        precision: of the arithmetic, "float32" or "bfloat16".

    Raises:
        ModelError: a file is missing or damaged, or it is another graph.
        MissingExtraError: OpenVINO is not installed.
    """
    library, graph = read(folder)
    names = {name for port in (*graph.inputs, *graph.outputs) for name in port.get_names()}
    if not {HIDDEN, LOGITS, BEAMS} <= names:
        raise _another(folder, names)
    place = find(str(folder))
    with loading(place):
        config = AutoConfig.from_pretrained(place.path, **place.options)
        own = (folder / GENERATION).is_file()
        generation = GenerationConfig.from_pretrained(place.path) if own else GenerationConfig()
    return Decoder(config, generation, cut(library, graph, precision))


def cut(library: Any, graph: Any, precision: str) -> Parts:
    """Both halves of a graph, which is changed."""
    hidden, logits = graph.output(HIDDEN), graph.output(LOGITS)
    states = hidden.get_node().input_value(0)
    given = require("openvino.opset13", extra="openvino", purpose="A model in OpenVINO's format").parameter(
        library.PartialShape([-1, states.partial_shape[-1]]), dtype=states.element_type, name="states"
    )
    for user in states.get_target_inputs():
        if user.get_node().get_type_name() != "Result":
            user.replace_source_output(given.output(0))
    head = library.Model([logits.get_node()], [given])
    graph.remove_result(logits.get_node())
    graph.validate_nodes_and_infer_types()
    how = settings_of(precision)
    stored = {"KV_CACHE_PRECISION": how["INFERENCE_PRECISION_HINT"]}  # left to itself it would round them to eight bits
    return Parts(library.compile_model(graph, "CPU", how | stored), library.compile_model(head, "CPU", how))


def _another(folder: Path, names: set[str]) -> ModelError:
    return unreadable(folder / MODEL, f"a graph of {', '.join(sorted(names))}")
