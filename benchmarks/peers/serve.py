"""A plain server: FastAPI around the pipeline of transformers, as users write it. Of Chainrule only the folder is used.

FastAPI runs the handler in its thread pool, so requests wait for one another in torch.

    python benchmarks/peers/serve.py --artifact FOLDER --port 8001
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Rows(BaseModel):
    inputs: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    classify = pipeline("text-classification", model=options.artifact, device="cpu")
    app = FastAPI()

    @app.post("/v1/predict")
    def predict(rows: Rows) -> Any:
        return {"predictions": classify(rows.inputs, truncation=True, max_length=128)}

    uvicorn.run(app, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
