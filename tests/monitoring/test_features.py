"""What is measured of rows, and what an artifact keeps of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import chainrule
from chainrule.core.artifact import Run
from chainrule.data.encode import encode
from chainrule.monitoring.features import SIZE, gauge_of
from chainrule.monitoring.reference import read_reference
from chainrule.testing.data import WORDS, entities, sentences, write_json_lines

pytestmark = pytest.mark.unit


def test_a_vector_is_the_projected_mean_of_the_embeddings(tiny_bert: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert), AutoModel.from_pretrained(tiny_bert)
    texts = [row["text"] for row in sentences(40)] + ["Ωmega ∑"]
    encoded = encode(tokenizer, {"text": texts}, None, 64)
    gauge = gauge_of(tokenizer, model)
    found = gauge.measure(encoded)
    assert found.vectors is not None
    assert found.unknown is not None
    assert gauge.table is not None
    weights = model.get_input_embeddings().weight.detach().double()
    for place, text in enumerate(texts):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        projection = np.linalg.lstsq(weights.numpy(), gauge.table, rcond=None)[0]
        assert found.vectors[place] == pytest.approx(weights[ids].mean(0).numpy() @ projection, abs=1e-6)
        assert found.lengths[place] == len(ids)
        assert found.unknown[place] == pytest.approx(float((ids == tokenizer.unk_token_id).float().mean()))
    some = gauge.measure(encoded, 3, 5)
    assert some.vectors is not None
    assert np.allclose(some.vectors, found.vectors[3:8])
    assert found.unknown[-1] > 0


def test_distances_survive_the_projection() -> None:
    generator = np.random.default_rng(0)
    points = generator.standard_normal((40, 384))
    layer = torch.nn.Embedding(40, 384, _weight=torch.tensor(points))

    class Model:
        def get_input_embeddings(self) -> torch.nn.Embedding:
            return layer

    table = gauge_of(object(), Model()).table
    assert table is not None
    assert table.shape == (40, SIZE)
    ratios = [
        np.linalg.norm(table[a] - table[b]) / np.linalg.norm(points[a] - points[b]) for a in range(40) for b in range(a)
    ]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)
    assert np.std(ratios) < 1.5 * (2 * SIZE) ** -0.5


def test_an_artifact_knows_what_is_usual_and_no_row(trained: Run, reviews: Path) -> None:
    reference = read_reference(trained.artifact.path)
    assert reference is not None
    assert reference.source == "validation"
    assert reference.rows == sum(reference.labels.values()) == trained.artifact.manifest.data["rows"]["validation"]
    assert reference.scores is not None
    assert reference.correct is not None
    assert sum(reference.correct) / reference.rows == pytest.approx(trained.artifact.manifest.metrics["accuracy"])
    told = json.loads((trained.artifact.path / "reference.json").read_text())
    words = {word for word in WORDS if word in json.dumps(told).split('"')}
    assert words <= {"negative", "positive"}


def test_entities_are_counted_by_kind(tmp_path: Path, tiny_bert: Path) -> None:
    settings = {"model": str(tiny_bert), "task": "token-classification", "training.epochs": 1, "training.threads": 1}
    file = write_json_lines(tmp_path / "e.jsonl", entities(400))
    run = chainrule.train(str(file), out=tmp_path / "run", settings=settings)
    reference = read_reference(run.artifact.path)
    assert reference is not None
    assert set(reference.labels) <= set(run.artifact.manifest.labels)
    assert reference.scores is None
    assert reference.lengths is not None
    assert sum(reference.lengths.counts) == reference.rows
