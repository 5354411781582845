"""Tiny artifacts, and servers that are processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.testing.data import searches, sentences, write_json_lines
from chainrule.testing.models import tiny_chat_model
from chainrule.testing.servers import Server, start_at_once

SETTINGS = {"training.epochs": 1, "training.threads": 1, "training.precision": "float32"}


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Server]]:
    """Starts a server of artifacts with flags, and environment variables by name."""
    running: list[Server] = []

    def begin(*words: str | Path, **variables: str) -> Server:
        running.append(start_at_once(words, variables))
        return running[-1]

    yield begin
    for server in running:
        if server.process.poll() is None:
            server.end()


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model that answers: the reply repeats a word of the prompt."""
    folder = tmp_path_factory.mktemp("talks")
    words = ("good", "bad", "warm", "cold", "clever", "silly", "great", "dull")
    rows = [{"instruction": f"film {word}", "output": f"very {word}, really {word}"} for word in words]
    for name, many in (("train", 12), ("validation", 2)):
        write_json_lines(folder / f"{name}.jsonl", rows * many)
    model = tiny_chat_model(folder / "llama", positions=128)
    settings = {"model": str(model), "task": "text-generation", "strategy": "full", **SETTINGS}
    settings |= {"training.epochs": 4, "optimizer.learning_rate": 1e-2, "training.batch_size": 8}
    return chainrule.train(str(folder), out=folder / "runs" / "helper", settings=settings)


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Run:
    """A model that makes vectors."""
    folder = tmp_path_factory.mktemp("vectors")
    texts = [row["text"] for row in sentences(48)]
    rows = [{"question": text, "answer": f"{text} really"} for text in dict.fromkeys(texts)]
    settings = {"model": str(tiny_bert), "task": "embedding", "training.batch_size": 16, **SETTINGS}
    return chainrule.train(str(write_json_lines(folder / "p.jsonl", rows)), out=folder / "vectors", settings=settings)


@pytest.fixture(scope="session")
def ranked(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Run:
    """A model that ranks items for queries."""
    folder = tmp_path_factory.mktemp("ranking")
    for seed, name in enumerate(("train", "validation")):
        write_json_lines(folder / f"{name}.jsonl", searches(48, seed=seed))
    settings = {"model": str(tiny_bert), "task": "ranking", "training.batch_size": 8, **SETTINGS}
    return chainrule.train(str(folder), out=folder / "run", settings=settings)


@pytest.fixture(scope="session")
def server(start: Callable[..., Server], trained: Run, talking: Run, vectors: Run, ranked: Run) -> Server:
    """A patient server of four models."""
    return start(trained.path, talking.path, vectors.path, f"search={ranked.path}", "--timeout", "600")
