"""How much memory a process takes that loads a model and predicts: measured in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from chainrule.core.artifact import Artifact
from chainrule.inference.predict import load_predictor
from chainrule.system.memory import PeakMemory

ROWS = 64
SECONDS = 600


def footprint_of(artifact: Artifact, inputs: Mapping[str, Sequence[str]]) -> float | None:
    """The largest resident memory in MiB, from the start of the process on; None where it failed.

    Args:
        inputs: field -> texts; at most ROWS of them are read.
    """
    few = {name: list(texts[:ROWS]) for name, texts in inputs.items()}
    command = [sys.executable, "-m", "chainrule.evaluation.footprint", str(artifact.path)]
    done = subprocess.run(command, input=json.dumps(few), capture_output=True, text=True, timeout=SECONDS, check=False)
    try:
        return float(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None


def main() -> None:
    """Predict what stands on stdin with the artifact that is named, and print the peak."""
    with PeakMemory() as memory:
        predictor = load_predictor(Artifact.read(Path(sys.argv[1])), device="cpu")
        predictor.predict(predictor.encode(json.load(sys.stdin)))
    sys.stdout.write(f"{memory.peak_mb:.1f}\n")


if __name__ == "__main__":
    main()
