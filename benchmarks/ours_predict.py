"""Chainrule's predictions for the same texts as peers/predict.py, from Python, tokenising included.

python benchmarks/ours_predict.py --artifact FOLDER --turns 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]
from predict import texts  # type: ignore[import-not-found]
from turn import Turns

from chainrule.core.artifact import Artifact
from chainrule.inference.predict import load_predictor
from chainrule.inference.rows import predict_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="chainrule")
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args()
    predictor = load_predictor(Artifact.read(Path(options.artifact)))
    rows, turns = {"text": texts()}, Turns(options.turns)
    while True:
        turns.step()
        predict_texts(predictor, rows)


if __name__ == "__main__":
    main()
