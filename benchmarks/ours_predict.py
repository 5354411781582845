"""Chainrule's predictions for the same texts as peers/predict.py, from Python, tokenising included.

python benchmarks/ours_predict.py --artifact FOLDER --turns 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chainrule.system.threads import wait_briefly

wait_briefly()  # as every verb does before torch is loaded

from chainrule.core.artifact import Artifact
from chainrule.inference.predict import load_predictor
from chainrule.inference.rows import predict_texts

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turn import Turns
from workloads import texts_to_predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="chainrule")
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args()
    predictor = load_predictor(Artifact.read(Path(options.artifact)))
    rows, turns = {"text": texts_to_predict()}, Turns(options.turns)
    while True:
        turns.step()
        predict_texts(predictor, rows)


if __name__ == "__main__":
    main()
