"""What all tests share: no hub, one thread, the folder of real data sets, tiny models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging as transformers_logging

from chainrule.core.artifact import Run
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model

# How fast examples come, and how long each takes, says something of the machine alone.
settings.register_profile("quiet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quiet")

SHARED_DATA = Path(os.environ.get("CHAINRULE_TEST_DATA", "../shared/data"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped where the sets are not."""

    def folder(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.is_dir():
            pytest.skip(f"the data set {name!r} is not there: set CHAINRULE_TEST_DATA to the folder of data sets")
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer BERT."""
    return tiny_model(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 400 made-up rows that can be learned."""
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", sentences(400))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, reviews: Path) -> Run:
    """A finished run of a few seconds on `reviews`."""
    import chainrule

    settings = {"model": str(tiny_bert), "training.epochs": 6, "optimizer.learning_rate": 5e-3}
    settings |= {"training.precision": "float32", "training.threads": 1}
    return chainrule.train(str(reviews), out=tmp_path_factory.mktemp("runs") / "reviews", settings=settings)
