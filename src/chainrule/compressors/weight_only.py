"""Weights of a language model in eight or four bits, run by OpenVINO: what it computes with stays floating point.

A model that writes reads all its weights once for each token, so that fewer bytes are less time. Eight bits: one scale
and one zero for each output. Four bits: one of each for every group of inputs, with scales that make the products on
real rows nearest (`rows`); embeddings and head stay in eight, and so do the layers that hurt most where the loss on
validation rises by more than it may (Frantar et al., 2023, GPTQ, section 2; Lin et al., 2024, AWQ).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig

from chainrule.compressors.base import Given, fall, refused
from chainrule.core.recipe import Section
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.decoder import converted_decoder, refuse_decoder, write_decoder
from chainrule.inference.predict import Predictor, said_of
from chainrule.inference.runtimes.decoder import BEAMS, Decoder, cut
from chainrule.models.adapters import plain_model
from chainrule.system.extras import require

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the weights in layers that are tried in four bits
_PURPOSE = "Weights in few bits"


class Options(Section):
    """How weights are rounded to four bits.

    Attributes:
        group: so many inputs share a scale; fewer where a layer's width is no multiple of it.
        rows: so many rows of validation show what the layers are given; 0 to round by the weights alone.
        share: of the layers' weights that go to four bits, the others to eight; None for the largest of five shares
            that holds on validation.
    """

    group: int = Field(default=64, ge=8)
    rows: int = Field(default=32, ge=0)
    share: float | None = Field(default=None, gt=0, le=1)


class Int4:
    """Takes a language model that OpenVINO can run."""

    faster, exact = True, False

    def __init__(self, options: Options) -> None:
        self.options = options

    def refuse(self, predictor: Predictor) -> None:
        if predictor.task.head != "language-model":
            reason = f"one for {predictor.task.name}"
            raise refused(predictor, reason, "Four bits are for models that write text; use --to int8.")
        refuse_decoder(predictor, "int4")

    def write(self, predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
        nncf = require("nncf", extra="int8", purpose=_PURPOSE)
        given.display.say("Converting to OpenVINO …")
        whole = converted_decoder(predictor)
        before = _loss(predictor, predictor.forward.model, given.rows)
        shares = SHARES if self.options.share is None else (self.options.share,)
        small = whole
        for share in shares:
            with silent(nncf):
                small = nncf.compress_weights(whole.clone(), **self._how(nncf, predictor, given.rows, share))
            after = _loss(predictor, _decoder(predictor, small), given.rows)
            given.display.say(_told(given.rows, before, after, f"{100 * share:.0f} % of the layers' weights in int4"))
            if fall("loss", before, after) <= given.loss:
                break
        return replace(write_decoder(predictor, small, folder), bound=bound)

    def _how(self, nncf: Any, predictor: Predictor, rows: Encoded, share: float) -> dict[str, Any]:
        parameters = require("nncf.quantization.advanced_parameters", extra="int8", purpose=_PURPOSE)
        fallback = parameters.GroupSizeFallbackMode.ADJUST
        how: dict[str, Any] = {
            "mode": nncf.CompressWeightsMode.INT4_ASYM,
            "group_size": self.options.group,
            "ratio": share,
            "advanced_parameters": parameters.AdvancedCompressionParameters(
                group_size_fallback_mode=fallback, min_adjusted_group_size=8
            ),
        }
        if self.options.rows:
            count = min(self.options.rows, len(rows))
            how["dataset"] = nncf.Dataset(list(_read(predictor, rows.take(np.arange(count)))))
            how |= {"scale_estimation": True, "subset_size": count}
        return how


def write_int8(predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
    """Write a language model with its weights in eight bits."""
    nncf = require("nncf", extra="int8", purpose=_PURPOSE)
    given.display.say("Converting to OpenVINO …")
    graph = converted_decoder(predictor)
    before = _loss(predictor, predictor.forward.model, given.rows)
    with silent(nncf):
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    after = _loss(predictor, _decoder(predictor, graph), given.rows)
    given.display.say(_told(given.rows, before, after, "all weights in int8"))
    return replace(write_decoder(predictor, graph, folder), bound=bound)


@contextmanager
def silent(nncf: Any) -> Iterator[None]:
    """Without NNCF's own bars and lines, which go to stdout."""
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _told(rows: Encoded, before: float, after: float, what: str) -> str:
    return f"Loss per token on {len(rows):,} rows of validation: {before:.4f} before, {after:.4f} with {what}."


def _decoder(predictor: Predictor, graph: Any) -> Decoder:
    """A graph in memory as a model, in float32."""
    library = require("openvino", extra="openvino", purpose=_PURPOSE)
    config = plain_model(predictor.forward.model).config
    return Decoder(config, GenerationConfig(), cut(library, graph.clone(), "float32"))


def _loss(predictor: Predictor, model: Any, rows: Encoded) -> float:
    said = said_of(replace(predictor.forward, model=model), rows, predictor.task)
    return float(predictor.task.measure(rows.targets, said)["loss"])


def _read(predictor: Predictor, rows: Encoded) -> Iterator[dict[str, np.ndarray]]:
    """Row by row what the graph is given."""
    forward = predictor.forward
    for row in range(len(rows)):
        places, device = np.array([row]), torch.device("cpu")
        ids = collate(rows, places, pad_id=forward.pad_id, left=False, device=device).inputs["input_ids"].numpy()
        count = np.arange(ids.shape[1], dtype=np.int64)
        mask, orders = np.ones_like(ids), np.arange(len(ids), dtype=np.int32)
        yield {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.broadcast_to(count, ids.shape).copy(),
            BEAMS: orders,
        }
