"""What a checkpoint costs: seconds to write one of the demo model in full fine-tuning, and its size on the disk.

python benchmarks/checkpoints.py --repeats 7
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from chainrule.core.recipe import Optimizer, Structure
from chainrule.core.task import Predictions
from chainrule.models.accelerate import accelerate
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.training.checkpoint import Best, Keeper, Standing
from chainrule.training.loop import Progress, mean_and_clip
from chainrule.training.optimizers import make_optimizer


def trained_model() -> tuple[Any, Progress]:
    """The demo model after one step."""
    tokenizer = load_tokenizer("minilm")
    model = load_classifier("minilm", tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0).train()
    accelerate(model, torch.device("cpu"))
    parameters = list(model.parameters())
    group = {"params": parameters, "lr": 1e-5, "initial_lr": 1e-5, "weight_decay": 0.01}
    optimizer = make_optimizer(Optimizer(), [group])
    model(input_ids=torch.randint(1000, 20000, (8, 32))).logits.sum().backward()
    mean_and_clip(parameters, 8, 1.0)
    optimizer.step()
    return model, Progress(1, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    model, progress = trained_model()
    names = [name for name, _ in model.named_parameters()]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "events.jsonl").touch()
        keeper = Keeper(run, 5, 2)
        for number in range(1, options.repeats + 1):
            progress.step = number
            weights = {name: value.detach().clone() for name, value in model.named_parameters()}
            predictions = Predictions(np.zeros(1000, np.int64), np.zeros(1000))
            standing = Standing(progress, Best(number, (0.0, 0.0), {}, predictions, weights))
            began = time.perf_counter()
            keeper.write(model, names, standing)
            seconds.append(time.perf_counter() - began)
        size = sum(path.stat().st_size for path in keeper.folder.rglob("*") if path.is_file()) / 2**20
    each = median(seconds)
    spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
    print(f"a checkpoint with new best weights: median {each:.2f} s of {len(seconds)} ({spread})")
    print(f"one every 5 minutes: {each / 300:.1%} of the time; {size:.0f} MB on the disk with 2 kept")


if __name__ == "__main__":
    main()
