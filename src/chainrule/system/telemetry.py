"""Nothing phones home: the usage statistics of the libraries we build on are turned off, in this one place."""

from __future__ import annotations

import os
import sys

SWITCHES = {
    "DO_NOT_TRACK": "1",  # the common convention; huggingface_hub reads it
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets: versions and environment in requests
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # huggingface_hub: looks for a newer version of itself
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets: a request that only counts the download
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers: asks a third party to convert a hub model
    "NNCF_CI": "1",  # NNCF
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray: statistics of the cluster
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Ray Train: kept on the machine, but nobody asks for them
    "MLFLOW_DISABLE_TELEMETRY": "true",  # mlflow reads "true" only
}


def turn_off_telemetry() -> None:
    """Set SWITCHES in this process and those it starts; call it before the libraries are imported.

    A setting of the user that says otherwise is overruled: it is our promise that nothing phones home.
    Where huggingface_hub was imported earlier, its constant is set as well, since it reads the environment once.
    """
    os.environ.update(SWITCHES)
    if "openvino_telemetry" not in sys.modules:  # OpenVINO and NNCF send through it, and without it do not
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        vars(constants)["HF_HUB_DISABLE_TELEMETRY"] = True
